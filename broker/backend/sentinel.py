"""The primary that Sentinels name: queried first, then updated by their announcements.

A demoted primary is never used:

1. The announcement of a switch closes every connection to it.
2. Each new connection checks the role of the server.
3. While a failover promotes another server, there is no primary.

An older configuration than the one that is known is believed where most sentinels say so for a
while, or where the known primary is none any more: docs/decisions/0026.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.backend.topology import Client, RefreshedDirectory, WrongDeploymentError
from broker.backend.urls import Address
from broker.runtime.tasks import cancel_and_wait, run_shielded

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 1.0
CHECK_INTERVAL_S: Final = 5.0  # with jitter; in case an announcement was lost
WATCH_RETRY_S: Final = 1.0
# How long a primary that is being replaced is not used, since sentinels that do not know of the
# failover still name it. If the end of the failover is not announced, writes stop for this long.
FENCE_MAX_S: Final = 3.0

# How long most sentinels must name an older configuration before it is believed. After a failover
# some know the newer one up to 2 s later.
SETTLE_S: Final = 4.0
CONTRADICTED_CHECK_S: Final = 1.0

SWITCHED: Final = "+switch-master"
MONITORED: Final = "+monitor"
# The step before the promotion: writes already sent are still replicated.
PROMOTING: Final = "+failover-state-select-slave"
ABORTED: Final = ("-failover-abort-slave-timeout", "-failover-abort-no-good-slave")


class SentinelLoginError(AuthenticationError):
    """A sentinel refuses the login, or a command that is needed."""


class Sentinels(RefreshedDirectory):
    """Knows which server is the primary of a service.

    Args:
        seeds: sentinels to start with; those that they know are used as well.
        service: the name under which they monitor the primary.
        connect: returns a client for one sentinel, without a reply timeout.
        connect_primary: returns a client for a server that fails unless it is a primary.
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
        self._fenced: Address | None = None
        self._fenced_until = 0.0
        # Whether a sentinel announced that the switch is complete.
        self._is_switch_announced = False
        self._seeds = list(seeds)
        self._sentinels: list[Address] = list(seeds)
        # Since when the sentinels have named an older configuration than the known one.
        self._contradicted_since: float | None = None
        self._watching: dict[Address, asyncio.Task[None]] = {}
        self._check_task: asyncio.Task[None] | None = None

    async def owner(self, key: str | bytes | None) -> Address:  # noqa: ARG002
        """Return the primary.

        Raises:
            RedisError, OSError: no sentinel answers, or there is no primary now.
        """
        await self.ensure_fresh()
        if not await self.is_usable(self._primary):
            await self.ensure_fresh()
        if self._primary is None:
            self.invalidate(None)
            raise RedisConnectionError(
                f"{self._service} has no primary now; a failover may be in progress"
            )
        # A refresh that began before the fence may have returned the fenced primary.
        self._check_fence(self._primary)
        return self._primary

    async def owners(self) -> list[Address | None]:
        """Return only the primary; raises like `owner`."""
        return [await self.owner(None)]

    async def refresh(self) -> None:
        """Read the primary from the sentinels with the newest configuration, and check its role."""
        if self._check_task is None:
            self._check_task = asyncio.create_task(self._check_regularly(), name="sentinel-check")
        await self._watch_sentinels()
        epoch, primary, is_complete = await self._newest()
        if epoch == self._epoch and is_complete and self._is_switch_announced:
            # No sentinel knows a newer configuration: the announcement was an old one.
            self._fenced = None
        self._check_fence(primary)
        await self._check_role(primary)
        self._epoch = epoch
        self._update(primary)

    async def _watch_sentinels(self) -> None:
        """Listen to the sentinels that are known, and to no others."""
        for sentinel in self._sentinels:
            if sentinel not in self._watching:
                self._watching[sentinel] = asyncio.create_task(
                    self._watch(sentinel), name=f"sentinel-{sentinel}"
                )
        former = [one for one in self._watching if one not in self._sentinels]
        await cancel_and_wait([self._watching.pop(one) for one in former])

    def _update(self, primary: Address | None) -> None:
        if primary != self._primary:
            if primary is not None:
                log.info("primary service=%s address=%s", self._service, primary)
            self._primary = primary
            self._notify(() if primary is None else (primary,))

    def _check_fence(self, primary: Address) -> None:
        if primary == self._fenced and time.monotonic() < self._fenced_until:
            raise RedisConnectionError(f"{primary} is being replaced as primary")

    async def _newest(self) -> tuple[int, Address, bool]:
        """Return (configuration epoch, primary, whether every sentinel answered).

        Raises:
            RedisError: no primary is known, and no sentinel answers or only outdated ones do.
        """
        try:
            answers = await self._answers()
        except RedisError:
            if self._primary is None:
                raise
            # Without sentinels the primary stays, as long as its own role is primary.
            return self._epoch, self._primary, False
        is_complete = len(answers) == len(self._sentinels)
        # If two answers of one epoch differ, one of them already names the new primary.
        epoch, primary = max(answers, key=lambda answer: (answer[0], answer[1] != self._primary))
        if epoch >= self._epoch or await self._is_older_believed(answers, primary):
            self._contradicted_since = None
            return epoch, primary, is_complete
        if self._primary is None:
            raise RedisConnectionError(
                f"the sentinels that answer know only the outdated primary {primary}"
            )
        return self._epoch, self._primary, False

    async def _is_older_believed(
        self, answers: Sequence[tuple[int, Address]], primary: Address
    ) -> bool:
        """Whether an older configuration than the known one replaces it: set up again, or restored.

        Args:
            answers: of the sentinels, all of older configurations.
            primary: that of the newest among them.
        """
        is_unanimous = len(set(answers)) == 1
        if is_unanimous and len(answers) == len(self._sentinels):
            return True
        now = time.monotonic()
        if self._contradicted_since is None:
            self._contradicted_since = now
            log.warning(
                "sentinels_contradict service=%s known=%s named=%s answers=%d of=%d",
                *(self._service, self._primary, primary, len(answers), len(self._sentinels)),
            )
        if now < self._contradicted_since + SETTLE_S:
            return False
        if is_unanimous and len(answers) * 2 > len(self._sentinels):
            return True
        # A minority may just be outdated; but without a primary there is nothing to keep.
        return self._primary is None or not await self._is_primary(self._primary)

    async def _is_primary(self, address: Address) -> bool:
        try:
            await self._check_role(address)
        except (RedisError, OSError):
            return False
        return True

    async def _answers(self) -> list[tuple[int, Address]]:
        """Return (configuration epoch, primary) of the sentinels that answer soon.

        Raises:
            RedisError: none does.
        """
        asked = {asyncio.create_task(self._ask_one(one)): one for one in self._sentinels}
        try:
            done, late = await asyncio.wait(asked, timeout=ASK_TIMEOUT_S / 4)
            if late and all(task.exception() for task in done):
                done, _ = await asyncio.wait(asked, timeout=ASK_TIMEOUT_S)
            answers = [task.result() for task in done if not task.exception()]
            errors = {asked[task]: error for task in done if (error := task.exception())}
        finally:
            await cancel_and_wait(asked)
        if not answers:
            raise self._unanswered(errors)
        found = [other for _, _, others in answers for other in others]
        # What no sentinel names any more is forgotten: they may have been set up anew.
        self._sentinels = list(dict.fromkeys((*self._seeds, *found)))
        return [(epoch, primary) for epoch, primary, _ in answers]

    def _unanswered(self, errors: Mapping[Address, BaseException]) -> RedisError:
        """Return the error for the errors of all sentinels that were asked."""
        for sentinel, error in errors.items():
            if isinstance(error, AuthenticationError | NoPermissionError):
                return SentinelLoginError(f"sentinel {sentinel}: {error}")
        texts = [str(error) for error in errors.values()]
        for phrase, why in (
            ("No such master", f"the sentinels monitor nothing called {self._service!r}"),
            ("unknown command", "these servers are no sentinels"),
        ):
            # One of them may have lost its configuration.
            if sum(phrase in text for text in texts) * 2 > len(self._sentinels):
                return WrongDeploymentError(
                    f"{why} ({', '.join(map(str, self._sentinels))}); correct the URL"
                )
        return RedisConnectionError(
            f"no sentinel of {', '.join(map(str, self._sentinels))} knows the primary of "
            f"{self._service!r}: {texts[-1] if texts else 'no answer'}"
        )

    async def _ask_one(self, sentinel: Address) -> tuple[int, Address, list[Address]]:
        """Return (configuration epoch, primary, the other sentinels that it knows) of one."""
        client = self._connect(sentinel)
        try:
            info = _as_dict(await client.execute_command("SENTINEL", "MASTER", self._service))  # type: ignore[no-untyped-call]
            # A separate command after the epoch: SENTINEL MASTER names the old primary for longer.
            found = await client.execute_command(  # type: ignore[no-untyped-call]
                "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service
            )
            others = await client.execute_command("SENTINEL", "SENTINELS", self._service)  # type: ignore[no-untyped-call]
        finally:
            await run_shielded(client.aclose())
        host, port = found
        known = []
        for other in map(_as_dict, others):
            address = Address(other["ip"], int(other["port"]))
            if address in self._sentinels or "s_down" not in other["flags"]:
                known.append(address)
        return int(info["config-epoch"]), Address(host.decode(), int(port)), known

    async def _check_role(self, primary: Address) -> None:
        client = self._connect_primary(primary)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await client.ping()
        finally:
            await run_shielded(client.aclose())

    async def _check_regularly(self) -> None:
        while True:
            is_contradicted = self._contradicted_since is not None
            interval = CONTRADICTED_CHECK_S if is_contradicted else CHECK_INTERVAL_S
            await asyncio.sleep(interval * random.uniform(0.5, 1.5))
            self.refresh_soon()

    async def _watch(self, sentinel: Address) -> None:
        """Subscribe to the announcements of one sentinel, for ever."""
        while True:
            client = self._connect(sentinel)
            pubsub = client.pubsub()
            try:
                await pubsub.subscribe(SWITCHED, PROMOTING, MONITORED, *ABORTED)
                # Earlier announcements were missed.
                self.refresh_soon()
                while True:
                    message = await pubsub.get_message(timeout=None)
                    if message is not None and message["type"] == "message":
                        self._announced(message["channel"].decode(), message["data"].decode())
            except (RedisError, OSError) as error:
                log.debug("sentinel_lost address=%s error=%s", sentinel, error)
            finally:
                await run_shielded(_close_all(pubsub, client))
            await asyncio.sleep(WATCH_RETRY_S * random.uniform(0.5, 1.5))

    def _announced(self, event: str, text: str) -> None:
        words = text.split()
        if self._service not in words:
            return
        log.info("sentinel_said event=%s text=%s", event, text)
        if event == SWITCHED:
            # service, old host, old port, new host, new port
            self._fence(Address(words[1], int(words[2])))
            self._is_switch_announced = True
            if self._primary == self._fenced:
                self._update(None)
        elif event == PROMOTING:
            # Writes that the old primary accepts from now on would be lost.
            if self._primary is not None:
                self._fence(self._primary)
                self._is_switch_announced = False
        elif event in ABORTED:
            self._fenced = None
        self.invalidate(None)

    def _fence(self, primary: Address) -> None:
        """Stop using this primary, even if sentinels that do not know better still name it."""
        self._fenced, self._fenced_until = primary, time.monotonic() + FENCE_MAX_S

    async def close(self) -> None:
        """Stop all queries and subscriptions."""
        await cancel_and_wait([self._check_task, *self._watching.values()])
        await super().close()


async def _close_all(pubsub: PubSub, client: Client) -> None:
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    await client.aclose()


async def primary_only(connection: AbstractConnection) -> None:
    """Set up a connection, and fail unless the server is a primary."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    role = await connection.read_response()
    if role[0] not in (b"master", "master"):
        raise RedisConnectionError("the server is no longer the primary")


def _as_dict(flat: list[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))
