"""The primary that Sentinels agree on: asked for at first, heard of at once when it changes.

Three things keep a demoted primary from being believed: the sentinels' announcements end every
connection to it, each new connection asks for the role, and while a failover promotes another
server nobody is the primary.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.backend.topology import Asking, Client
from broker.backend.urls import Address
from broker.runtime.tasks import cancel_and_wait, run_shielded

log = logging.getLogger(__name__)

ASK_TIMEOUT: Final = 1.0
CHECK_EVERY: Final = 5.0  # seconds, with jitter: in case an announcement was lost
WATCH_RETRY: Final = 1.0
# Seconds for which a primary that is being replaced is not believed: sentinels that have not heard
# of it name it still. Also how long a failover whose end nobody hears stops writes.
FENCE_MAX: Final = 3.0

SWITCHED: Final = "+switch-master"
# The step before the one that promotes: what is under way then is still replicated.
PROMOTING: Final = "+failover-state-select-slave"
ABORTED: Final = ("-failover-abort-slave-timeout", "-failover-abort-no-good-slave")


class Sentinels(Asking):
    """Which server is the primary of a service.

    Args:
        seeds: sentinels; others that they know are asked and heard as well.
        service: the name under which they watch the primary.
        connect: makes a client of one sentinel, without a reply timeout.
        connect_primary: makes a client of a server, that ends unless the server is a primary.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        service: str,
        connect: Callable[[Address], Client],
        connect_primary: Callable[[Address], Client],
    ) -> None:
        super().__init__()
        self._service = service
        self._connect = connect
        self._connect_primary = connect_primary
        self._primary: Address | None = None
        self._epoch = 0
        self._left: Address | None = None
        self._left_until = 0.0
        # Whether the sentinel that made us leave it must know of another one already.
        self._is_told = False
        self._sentinels: list[Address] = list(seeds)
        self._watching: dict[Address, asyncio.Task[None]] = {}
        self._checking: asyncio.Task[None] | None = None

    async def owner(self, key: str | bytes | None) -> Address:  # noqa: ARG002
        """Return the primary.

        Raises:
            RedisError, OSError: no sentinel answers, or there is no primary at this moment.
        """
        await self.settled()
        if not await self.trusted(self._primary):
            await self.settled()
        if self._primary is None:
            self.invalidate(None)
            raise RedisConnectionError(f"{self._service} has no primary at this moment")
        # A question that was under way when it was left may have been answered too early.
        self._check_fence(self._primary)
        return self._primary

    async def owners(self) -> list[Address | None]:
        """Return the primary alone; raises as `owner`."""
        return [await self.owner(None)]

    async def ask(self) -> None:
        """Learn the primary: what the sentinels with the newest configuration say, and it too."""
        if self._checking is None:
            self._checking = asyncio.create_task(self._check(), name="sentinel-check")
        for sentinel in self._sentinels:
            if sentinel not in self._watching:
                self._watching[sentinel] = asyncio.create_task(
                    self._watch(sentinel), name=f"sentinel-{sentinel}"
                )
        epoch, primary, is_complete = await self._newest()
        if epoch == self._epoch and is_complete and self._is_told:
            # Whoever announced the switch knows no more than before: it was an old one.
            self._left = None
        self._check_fence(primary)
        await self._check_role(primary)
        self._epoch = epoch
        self._settle(primary)

    def _settle(self, primary: Address | None) -> None:
        if primary != self._primary:
            if primary is not None:
                log.info("primary service=%s address=%s", self._service, primary)
            self._primary = primary
            self._tell(() if primary is None else (primary,))

    def _check_fence(self, primary: Address) -> None:
        if primary == self._left and time.monotonic() < self._left_until:
            raise RedisConnectionError(f"{primary} is being replaced as primary")

    async def _newest(self) -> tuple[int, Address, bool]:
        """Return (configuration epoch, primary, whether every sentinel was heard).

        Raises:
            RedisError: no sentinel answers, or only such as know less than was known before; and
                there is no primary that could go on.
        """
        try:
            answers = await self._answers()
        except RedisError:
            if self._primary is None:
                raise
            # Without sentinels a primary is as good as before, as long as it says so itself.
            return self._epoch, self._primary, False
        is_complete = len(answers) == len(self._sentinels)
        # Where two of the same epoch differ, one has just begun to tell of a new primary.
        epoch, primary = max(answers, key=lambda answer: (answer[0], answer[1] != self._primary))
        if epoch < self._epoch and not (is_complete and len(set(answers)) == 1):
            # Only all of them together may go back: somebody set them up anew.
            if self._primary is None:
                raise RedisConnectionError(f"no sentinel at hand knows more than {primary}")
            return self._epoch, self._primary, False
        return epoch, primary, is_complete

    async def _answers(self) -> list[tuple[int, Address]]:
        """Return what the sentinels say; one that hangs is not waited for long."""
        tasks = [asyncio.create_task(self._ask_one(one)) for one in self._sentinels]
        try:
            done, late = await asyncio.wait(tasks, timeout=ASK_TIMEOUT / 4)
            if late and all(task.exception() for task in done):
                done, _ = await asyncio.wait(tasks, timeout=ASK_TIMEOUT)
            answers = [task.result() for task in done if not task.exception()]
            errors = [task.exception() for task in done]
        finally:
            await cancel_and_wait(tasks)
        if answers:
            return answers
        for error in errors:
            if isinstance(error, AuthenticationError):
                raise error
        raise RedisConnectionError(
            f"no sentinel of {', '.join(map(str, self._sentinels))} knows the primary of "
            f"{self._service!r}: {errors[-1] if errors else 'no answer'}"
        )

    async def _ask_one(self, sentinel: Address) -> tuple[int, Address]:
        """Return (configuration epoch, primary) as one sentinel says; learn of the others."""
        client = self._connect(sentinel)
        try:
            told = _named(await client.execute_command("SENTINEL", "MASTER", self._service))  # type: ignore[no-untyped-call]
            # After the epoch, and not out of the same answer: that names the old one for longer.
            found = await client.execute_command(  # type: ignore[no-untyped-call]
                "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service
            )
            others = await client.execute_command("SENTINEL", "SENTINELS", self._service)  # type: ignore[no-untyped-call]
        finally:
            await run_shielded(client.aclose())
        host, port = found
        for other in map(_named, others):
            address = Address(other["ip"], int(other["port"]))
            if address not in self._sentinels and "s_down" not in other["flags"]:
                self._sentinels.append(address)
        return int(told["config-epoch"]), Address(host.decode(), int(port))

    async def _check_role(self, primary: Address) -> None:
        client = self._connect_primary(primary)
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                await client.ping()
        finally:
            await run_shielded(client.aclose())

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY * random.uniform(0.5, 1.5))
            self.check()

    async def _watch(self, sentinel: Address) -> None:
        """Hear what one sentinel announces, for ever."""
        while True:
            client = self._connect(sentinel)
            pubsub = client.pubsub()
            try:
                await pubsub.subscribe(SWITCHED, PROMOTING, *ABORTED)
                # What it said before nobody heard.
                self.check()
                while True:
                    message = await pubsub.get_message(timeout=None)
                    if message is not None and message["type"] == "message":
                        self._announced(message["channel"].decode(), message["data"].decode())
            except (RedisError, OSError) as error:
                log.debug("sentinel_lost address=%s error=%s", sentinel, error)
            finally:
                await run_shielded(_closed(pubsub, client))
            await asyncio.sleep(WATCH_RETRY * random.uniform(0.5, 1.5))

    def _announced(self, event: str, text: str) -> None:
        words = text.split()
        if self._service not in words:
            return
        log.info("sentinel_said event=%s text=%s", event, text)
        if event == SWITCHED:
            # service, old host, old port, new host, new port
            self._leave(Address(words[1], int(words[2])))
            self._is_told = True
            if self._primary == self._left:
                self._settle(None)
        elif event == PROMOTING:
            # What the old one still accepts from now on would be lost.
            if self._primary is not None:
                self._leave(self._primary)
                self._is_told = False
        else:
            self._left = None
        self.invalidate(None)

    def _leave(self, primary: Address) -> None:
        """Do not take this one for the primary, whatever sentinels that know less say."""
        self._left, self._left_until = primary, time.monotonic() + FENCE_MAX

    async def close(self) -> None:
        """Ask and hear nobody any more."""
        await cancel_and_wait([self._checking, *self._watching.values()])
        await super().close()


async def _closed(pubsub: PubSub, client: Client) -> None:
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    await client.aclose()


async def primary_only(connection: AbstractConnection) -> None:
    """Greet a server as usual, and let the connection be only if the server is a primary."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    role = await connection.read_response()
    if role[0] not in (b"master", "master"):
        raise RedisConnectionError("the server is not the primary any more")


def _named(flat: list[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))
