"""Waiting until accepted deltas are on replicas, or on disks."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from broker.backend.connections import translated
from broker.backend.replies import Claim, Confirmed
from broker.backend.session import Session
from broker.backend.topology import Client
from broker.backend.urls import Address
from broker.engine.sender import Sender
from broker.errors import ConnectError, FlushTimeoutError, NotReplicatedError

log = logging.getLogger(__name__)

# A server that returned without accepted chunks gets them again within about a second.
RETRY = 0.1
# The server's own reply, with the numbers, should arrive before the local timeout.
GRACE = 0.5
# Then the command is sent again: another server may be the primary now.
MAX_WAIT = 5.0
CONNECTIONS = 16

# Waits until everything is accepted, for at most so many seconds (None: for ever).
WaitAccepted = Callable[[float | None], Awaitable[None]]


class Confirmer:
    """Asks the server whether one producer's accepted chunks are on replicas, or on disks.

    Args:
        session: connected, namespace joined.
        sender: of the producer.
    """

    def __init__(self, session: Session, sender: Sender) -> None:
        self._session = session
        self._sender = sender
        self._client: Client | None = None

    async def confirm(
        self,
        accepted: WaitAccepted,
        replicas: int,
        *,
        fsynced: bool,
        timeout: float | None,  # noqa: ASYNC109 - as flush
    ) -> None:
        """Return when everything that was accepted is on the replicas, or disks.

        Args:
            accepted: waits until the server has accepted it.
            replicas: how many.
            fsynced: whether the server and these replicas have to have it on disk.
            timeout: seconds; None waits without a limit.

        Raises:
            NotReplicatedError: not in time; it stays accepted.
            UnsupportedServerError, FencedError: as they say.
        """
        loop = asyncio.get_running_loop()
        deadline = math.inf if timeout is None else loop.time() + timeout
        last = nowhere = Confirmed(is_held=False, local=False, replicas=0)
        trouble = ""

        def left() -> float:
            return max(0.0, deadline - loop.time())

        try:
            async with asyncio.timeout(None if timeout is None else timeout + GRACE):
                while True:
                    await accepted(None if timeout is None else left())
                    try:
                        # Without an await in between: this covers exactly what was just accepted.
                        claims = self._sender.claims()
                        if not claims:
                            return
                        seconds = min(MAX_WAIT, left())
                        last = await self._ask(claims, replicas, seconds, fsynced=fsynced)
                    except ConnectError as error:
                        # Like every append it waits for the server to come back; then all is asked
                        # again, as the next one may have less.
                        last, trouble = nowhere, str(error)
                        log.debug("confirm_failed error=%s", error)
                    else:
                        trouble = "" if last.is_held else "the server came back with less"
                        is_local = last.local or not fsynced
                        if last.is_held and is_local and last.replicas >= replicas:
                            return
                    if left() <= RETRY:
                        break
                    await asyncio.sleep(RETRY)
        except FlushTimeoutError:
            # Not even accepted.
            raise
        except TimeoutError:
            pass
        raise NotReplicatedError(last.replicas, replicas, fsynced=fsynced, trouble=trouble)

    async def _ask(
        self,
        claims: list[Claim],
        replicas: int,
        seconds: float,
        *,
        fsynced: bool,
    ) -> Confirmed:
        if self._client is None:
            self._client = self._session.connections.blocking(CONNECTIONS)
        client, directory = self._client, self._session.connections.directory
        groups: dict[Address | None, list[Claim]] = {}
        async with translated("asking which servers hold the shards"):
            for claim in claims:
                owner = await directory.owner(claim.keys.intake)
                groups.setdefault(owner, []).append(claim)
        asked = (
            self._session.commands.confirm(
                client,
                group,
                self._sender.node,
                self._sender.token,
                replicas=replicas,
                fsynced=fsynced,
                # 0 would be for ever.
                timeout_ms=max(1, round(seconds * 1000)),
            )
            for group in groups.values()
        )
        answers: list[Confirmed] = []
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            answers.append(answer)
        return Confirmed(
            is_held=all(one.is_held for one in answers),
            local=all(one.local for one in answers),
            replicas=min(one.replicas for one in answers),
        )
