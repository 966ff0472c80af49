"""How much is read or written in one command, and why not more.

Redis serves nobody else meanwhile, and whoever decodes a page has its event loop for itself: as
long as that takes, others of the same process wait.
"""

from __future__ import annotations

from typing import Final

# -- the log, in batches ---------------------------------------------------------------------------

# A replica that fell behind does nothing more urgent than this.
LOG_OF_REPLICA: Final = 32
# `get`, `dump` and the like: nobody else is in the process.
LOG_OF_INSPECTOR: Final = 64
# A flush worker may share the process, and has 50 ms for a batch.
LOG_OF_SCHEDULER: Final = 8
# Likewise the application whose replica is compared.
LOG_OF_VERIFIER: Final = 8

# -- the full state --------------------------------------------------------------------------------

# Fields of one HSCAN of a load: a joining replica has nothing to serve yet.
FIELDS: Final = 2000
# Blocks of tables likewise, of 4 to 8 KiB each.
BLOCKS: Final = 200
# Fields that one Lua call sums up or sifts by key range: a script blocks the whole server.
SCANNED_FIELDS: Final = 500
# Keys of net changes, read or written at once: as many take about 3 ms.
KEYS: Final = 250
# Bytes of table fields that one command writes.
BYTES: Final = 1 << 20
# Keys that a scheduler folds before it commits, so that memory is bounded and progress kept.
PORTION_KEYS: Final = 100_000
# Keys of a copy that are summed up before others get their turn.
SLICE_KEYS: Final = 200
