"""The slots of a Redis Cluster: which node owns which, learnt from any node that answers.

Why not redis-py's cluster client: docs/decisions/0009-a-directory-of-owners.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from redis.exceptions import AskError, AuthenticationError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.backend.topology import Asking, Client
from broker.backend.urls import Address
from broker.protocol.names import SLOTS, slot_of_key
from broker.runtime.tasks import cancel_and_wait, run_shielded

ASK_TIMEOUT: Final = 2.0
STAGGER: Final = 0.25  # seconds for which a silent node is waited for alone
# For a host whose name the node that was asked has not heard yet.
UNKNOWN: Final = "?"

# First slot, last slot -> owner.
Ranges = dict[tuple[int, int], Address]


class Cluster(Asking):
    """Which node owns which slot.

    Args:
        seeds: nodes to begin with; all others are learnt, and any of them may be asked later.
        connect: makes a client of one node, for one question.
    """

    publish: ClassVar[str] = "SPUBLISH"
    is_sharded: ClassVar[bool] = True

    def __init__(self, seeds: Sequence[Address], connect: Callable[[Address], Client]) -> None:
        super().__init__()
        self._seeds = seeds
        self._connect = connect
        self._slots: list[Address | None] = [None] * SLOTS

    async def owner(self, key: str | bytes | None) -> Address:
        """Return the node that owns a key's slot, or (no key) any node that owns some.

        Raises:
            RedisError, OSError: no node answers, or nobody owns the slot.
        """
        await self.settled()
        if key is None:
            owners = self._owners()
            return random.choice(sorted(owners - self._suspects or owners))
        slot = slot_of_key(key.encode() if isinstance(key, str) else key)
        if not await self.trusted(self._slots[slot]):
            await self.settled()
        node = self._slots[slot]
        if node is None:
            self.invalidate(None)
            raise RedisConnectionError(
                f"no node of the Cluster owns slot {slot}; see `redis-cli --cluster check`"
            )
        return node

    async def owners(self) -> list[Address | None]:
        """Return the nodes that own slots; raises as `owner`."""
        await self.settled()
        return [*sorted(self._owners())]

    def _owners(self) -> set[Address]:
        return {node for node in self._slots if node is not None}

    def redirected(self, address: Address | None, error: RedisError) -> bool:
        """Learn from a redirection; true if it names the owner."""
        if isinstance(error, MovedError) and error.host != UNKNOWN:
            # No host means: the one that was asked.
            host = error.host or (address.host if address else "")
            moved = list(self._slots)
            moved[error.slot_id] = Address(host, error.port)
            self._settle(moved)
            # Others will have moved too.
            self.invalidate(None)
            return True
        # A slot that is on its way still belongs to whom it belonged to.
        if not isinstance(error, AskError | TryAgainError):
            self.invalidate(address)
        return False

    async def ask(self) -> None:
        """Learn all slots from the first node that knows them."""
        # Seeds are names that may outlive the nodes that were behind them.
        known = [*{*self._seeds, *self._owners()}]
        nodes = sorted(known, key=lambda node: (node in self._suspects, random.random()))
        found = await self._first_answer(nodes)
        slots: list[Address | None] = [None] * SLOTS
        for (first, last), node in found.items():
            slots[first : last + 1] = [node] * (last - first + 1)
        self._settle(slots)

    def _settle(self, slots: list[Address | None]) -> None:
        if slots != self._slots:
            self._slots = slots
            self._tell(self._owners())

    async def _first_answer(self, nodes: list[Address]) -> Ranges:
        """Return what the first node says; the next is asked when one fails or is slow."""
        asked: set[asyncio.Task[Ranges]] = set()
        errors: list[BaseException] = []
        waiting = list(nodes)
        try:
            while waiting or asked:
                if waiting:
                    asked.add(asyncio.create_task(self._slots_of(waiting.pop(0))))
                done, asked = await asyncio.wait(
                    asked,
                    timeout=STAGGER if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    error = task.exception()
                    if error is None:
                        return task.result()
                    errors.append(error)
        finally:
            await cancel_and_wait(asked)
        for error in errors:
            if isinstance(error, AuthenticationError):
                raise error
        names = ", ".join(map(str, nodes))
        # One that was too slow says nothing.
        why = str(errors[-1]) or f"nothing within {ASK_TIMEOUT:g} s"
        raise RedisConnectionError(f"no node of the Cluster answers ({names}): {why}")

    async def _slots_of(self, node: Address) -> Ranges:
        client = self._connect(node)
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                told: list[Any] = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        finally:
            await run_shielded(client.aclose())
        if not told:
            raise RedisConnectionError(f"{node} knows of no slot; is it part of the Cluster?")
        return owners_in(told, node)


def owners_in(told: list[Any], asked: Address) -> Ranges:
    """Return what a node's answer to `CLUSTER SLOTS` says.

    Slots of an owner without an address are left out.
    """
    found: Ranges = {}
    # Replicas follow the owner.
    for first, last, (name, port, _, *more), *_ in told:
        # No host means: the one that was asked.
        host = (name or b"").decode() or asked.host
        if host == UNKNOWN:
            # Where names are preferred, the IP address comes beside them.
            facts = [fact.decode() for fact in more[0]] if more else []
            host = dict(zip(facts[::2], facts[1::2], strict=True)).get("ip", "")
        if host:
            found[first, last] = Address(host, port)
    return found
