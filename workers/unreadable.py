"""What of one shard's full state a scheduler had to read, and could not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from broker.backend import queries
from broker.backend.topology import Client
from broker.engine.net_changes import NetChanges
from broker.protocol.fields import read_page
from broker.protocol.names import ShardKeys

SHOWN: Final = 5
MAX_READ_AGAIN: Final = 1000


class UnreadableFields:
    """Keys and tables whose fields cannot be read, until they are mended.

    A scheduler reads a field only to go on from it, so there may be more.
    """

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._tables: list[str] = []

    def __len__(self) -> int:
        """Return how many keys and tables there are."""
        return len(self._keys) + len(self._tables)

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
        self._keys -= changes.touched - changes.damaged
        self._keys |= changes.damaged

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
        fields = await queries.state_fields(client, keys, names)
        there = [(name, one) for name, one in zip(names, fields, strict=True) if one is not None]
        page = read_page([name.encode() for name, _ in there], [one for _, one in there])
        self._keys -= set(names) - {name.decode() for name in page.damaged}
