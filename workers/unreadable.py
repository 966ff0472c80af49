"""What of one shard's full state a scheduler had to read, and could not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from broker.backend import queries
from broker.backend.topology import Client
from broker.engine.net_changes import NetChanges
from broker.protocol.fields import name_of, read_page
from broker.protocol.names import ShardKeys

SHOWN: Final = 5
MAX_READ_AGAIN: Final = 1000


class UnreadableFields:
    """Keys and tables whose fields cannot be read, until they are mended.

    A scheduler reads the fields that it goes on from, and some of the others in each round.
    """

    def __init__(self) -> None:
        # By name: a key that is not UTF-8 is shown with escapes.
        self._keys: dict[str, bytes] = {}
        self._tables: list[str] = []

    def __len__(self) -> int:
        """Return how many keys and tables there are."""
        return len(self._keys) + len(self._tables)

    @property
    def keys(self) -> frozenset[str]:
        """The keys."""
        return frozenset(self._keys)

    def found(self, keys: Iterable[bytes]) -> None:
        """Take what was found while the full state was read."""
        self._keys.update((name_of(key), key) for key in keys)

    def mended(self, keys: Iterable[str]) -> None:
        """Forget keys whose fields were written anew."""
        for key in keys:
            self._keys.pop(key, None)

    def text(self) -> str:
        """Return how many there are and the first names; "" if there are none."""
        found = []
        for kind, names in (("key", self._keys), ("table", self._tables)):
            if names:
                shown = ", ".join(map(ascii, sorted(names)[:SHOWN]))
                found.append(f"{len(names)} {kind}{'s' * (len(names) > 1)} ({shown})")
        return " and ".join(found)

    def folded(self, changes: NetChanges) -> None:
        """Take what was found while the log was folded; what was overwritten is mended."""
        self.mended(changes.touched - changes.damaged)
        self.found(map(str.encode, changes.damaged))

    def loaded(self, damaged_tables: Iterable[str]) -> None:
        """Take what was found while the tables were loaded."""
        self._tables = list(damaged_tables)

    async def read_again(self, client: Client, keys: ShardKeys) -> None:
        """Forget the keys that were mended or removed by others.

        Raises:
            BackendError: Redis failed.
        """
        if not self._keys:
            return
        names = sorted(self._keys)[:MAX_READ_AGAIN]
        raw = [self._keys[name] for name in names]
        fields = await queries.state_fields(client, keys, raw)
        there = [(key, one) for key, one in zip(raw, fields, strict=True) if one is not None]
        page = read_page([key for key, _ in there], [one for _, one in there])
        self.mended(names)
        self.found(page.damaged)
