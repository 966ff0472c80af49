"""What a load of the full state is compared with the scheduler's digest by. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.protocol.digest import Digest
from broker.protocol.fields import content_in

# To sum a key costs a third of loading it: 8 ms for these.
MAX_SUMMED_KEYS: Final = 20_000


class LoadSums:
    """The fields that a load reads, as long as they are few enough to sum before it is shown."""

    def __init__(self) -> None:
        self._pages: list[tuple[Sequence[bytes], Sequence[bytes]]] | None = []
        self._left = MAX_SUMMED_KEYS

    def add(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> None:
        """Add a page of the full-state hash."""
        self._left -= len(keys)
        if self._left < 0:
            # It is compared when the replica is live.
            self._pages = None
        if self._pages is not None:
            self._pages.append((keys, fields))

    def digest(self) -> Digest | None:
        """Return the digest of all fields; None: there are too many, or one was returned twice."""
        if self._pages is None:
            return None
        digest, seen, count = Digest(), set[bytes](), 0
        for keys, fields in self._pages:
            count += len(keys)
            seen.update(keys)
            digest.add_all(keys, map(content_in, fields))
        return digest if len(seen) == count else None
