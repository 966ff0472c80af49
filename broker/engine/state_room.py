"""Which shards of a namespace take deletes only, as far as a producer knows."""

from __future__ import annotations

import logging

from broker.backend import queries
from broker.backend.session import Session
from broker.core.buffer import ProducerBuffer
from broker.errors import StateFullError
from broker.protocol.state_bounds import StateFull

log = logging.getLogger(__name__)


class StateRoom:
    """Learns from replies that a shard's state is above a bound, and refuses writes meanwhile.

    Args:
        session: of the producer.
        buffer: of the producer.
        node: its name.

    Attributes:
        full: shards above a bound, with that bound.
    """

    def __init__(self, session: Session, buffer: ProducerBuffer, node: str) -> None:
        self.full: dict[int, StateFull] = {}
        self._session = session
        self._buffer = buffer
        self._node = node

    def check(self, shard: int) -> None:
        """Return if a shard takes more than deletes.

        Raises:
            StateFullError: its state is above a bound.
        """
        full = self.full.get(shard)
        if full is not None:
            raise StateFullError(
                f"shard {shard} of {self._session.namespace!r} holds {full}: delete keys, or run "
                f"the schedulers with a higher --{full.setting.replace('_', '-')}; until the next "
                "full state only deletes are accepted"
            )

    async def told(self, shard: int, *, is_full: bool) -> None:
        """Use what the last reply said; look if that is new. Raises as `look`."""
        if is_full is not (shard in self.full):
            await self.look(shard)

    async def look_again(self, shard: int) -> None:
        """Look whether there is room by now, if there was none. Raises as `look`."""
        if shard in self.full:
            await self.look(shard)

    async def look(self, shard: int) -> None:
        """Ask which bound a shard's state is above.

        Raises:
            BackendError: Redis failed.
        """
        found = await queries.full_state(self._session.client, self._session.keys[shard])
        if found is None:
            self.full.pop(shard, None)
        else:
            if shard not in self.full:
                log.error("state_full node=%s shard=%d holds=%s", self._node, shard, found)
            self.full[shard] = found
        self._buffer.mark_full(shard, found is not None)
