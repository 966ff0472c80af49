"""How much is read or written in one command, and why not more.

While Redis executes a command, all other clients wait. While a page is decoded, all other tasks of
the same event loop wait.
"""

from __future__ import annotations

from typing import Final

# -- the log, in batches ---------------------------------------------------------------------------

# A replica that is behind has nothing more urgent to do.
LOG_OF_REPLICA: Final = 32
# Commands such as `get`: the process does nothing else.
LOG_OF_INSPECTOR: Final = 64
# A flush worker may share the process, and has 50 ms for each batch.
LOG_OF_SCHEDULER: Final = 8
# The application that compares its replica shares the process.
LOG_OF_VERIFIER: Final = 8

# -- the full state --------------------------------------------------------------------------------

# Fields of one HSCAN of a load: a replica that joins is not read yet.
FIELDS: Final = 2000
# Blocks of tables in the same case, 4 to 8 KiB each.
BLOCKS: Final = 200
# Fields that one Lua call filters by key range: a script blocks the whole server.
SCANNED_FIELDS: Final = 500
# Keys of net changes, read or written at once: this takes about 3 ms.
KEYS: Final = 1000
# Bytes of table fields that one command writes.
BYTES: Final = 1 << 20
# Keys that a scheduler folds before it commits, so that memory is bounded and progress kept.
PORTION_KEYS: Final = 100_000
# Keys of a copy that are summed before other tasks run.
SLICE_KEYS: Final = 1000
