"""Looking again and again at what was right with the servers when a worker started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from broker.backend.conditions import conditions
from broker.backend.server_errors import MEANINGS
from broker.backend.session import Session
from broker.errors import BackendError
from broker.protocol.names import ShardKeys
from broker.runtime import clock

log = logging.getLogger(__name__)

CONDITIONS_INTERVAL_S = 2.0
TOLD_INTERVAL_S: Final = 30.0


class ConditionsWatch:
    """Watches eviction and memory of the servers of a namespace.

    Args:
        session: connected, namespace created or joined.
        worker: name of the worker that asks.

    Attributes:
        evicted: keys that the servers evicted while this worker watched, of whatever namespace.
    """

    def __init__(self, session: Session, worker: str) -> None:
        self.evicted = 0
        self._session = session
        self._worker = worker
        # By run id of the server: the number begins anew with each process.
        self._seen: dict[str, int] = {}
        self._told = 0
        self._told_at = -TOLD_INTERVAL_S

    async def run(self, tell: Callable[[str], object]) -> None:
        """Tell for ever what is wrong, "" for nothing; a server that is away counts as right."""
        while True:
            tell(await self.look())
            await asyncio.sleep(CONDITIONS_INTERVAL_S)

    async def look(self) -> str:
        """Return what is wrong with a server, and how to mend it; "" if nothing is."""
        faults = []
        for keys in self._of_each_server():
            # The polls and renewals tell that a server is away.
            with suppress(BackendError):
                faults.append(await self._fault_of(keys))
        self._tell_evicted()
        return next(filter(None, faults), "")

    async def _fault_of(self, keys: ShardKeys) -> str:
        try:
            found = await conditions(self._session.client, keys)
        except BackendError as error:
            if error.meaning == MEANINGS["NOPERM"].says:
                return f"whether Redis evicts keys or is out of memory is not known: {error}"
            raise
        self.evicted += max(0, found.evicted - self._seen.get(found.run, found.evicted))
        self._seen[found.run] = found.evicted
        return found.fault

    def _of_each_server(self) -> list[ShardKeys]:
        keys = self._session.keys
        return list(keys) if self._session.connections.directory.is_sharded else keys[:1]

    def _tell_evicted(self) -> None:
        now = clock.now()
        if self.evicted == self._told or now - self._told_at < TOLD_INTERVAL_S:
            return
        log.error(
            "keys_evicted worker=%s keys=%d fix=run CONFIG SET maxmemory-policy noeviction, then "
            "statebroker status --check; write again what is missing",
            *(self._worker, self.evicted - self._told),
        )
        self._told, self._told_at = self.evicted, now
