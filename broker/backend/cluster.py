"""The slots of a Redis Cluster: which node owns which, as any answering node reports.

Why not redis-py's cluster client: docs/decisions/0009-a-directory-of-owners.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Final

from redis.exceptions import AskError, AuthenticationError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.backend.topology import Client, RefreshedDirectory, WrongDeploymentError
from broker.backend.urls import Address
from broker.protocol.names import SLOTS, slot_of_key
from broker.runtime.tasks import first_success, run_shielded

ASK_TIMEOUT_S: Final = 2.0
STAGGER_S: Final = 0.25  # how long to wait for a node before asking the next one too
# Reported in place of a host whose name the asked node does not know yet.
UNKNOWN: Final = "?"

# First slot, last slot -> owner.
Ranges = dict[tuple[int, int], Address]


class Cluster(RefreshedDirectory):
    """Maps slots to the nodes that own them.

    Args:
        seeds: nodes to ask first; the others are discovered, and may be asked later.
        connect: returns a short-lived client for one node.
    """

    publish: ClassVar[str] = "SPUBLISH"
    is_sharded: ClassVar[bool] = True

    def __init__(self, seeds: Sequence[Address], connect: Callable[[Address], Client]) -> None:
        super().__init__()
        self._seeds = seeds
        self._connect = connect
        self._slots: list[Address | None] = [None] * SLOTS

    async def owner(self, key: str | bytes | None) -> Address:
        """Return the node that owns a key's slot, or without a key any node that owns slots.

        Raises:
            RedisError, OSError: no node answers, or the slot has no owner.
        """
        await self.ensure_fresh()
        if key is None:
            owners = self._owners()
            return random.choice(sorted(owners - self._suspects or owners))
        slot = slot_of_key(key.encode() if isinstance(key, str) else key)
        if not await self.is_usable(self._slots[slot]):
            await self.ensure_fresh()
        node = self._slots[slot]
        if node is None:
            self.invalidate(None)
            raise RedisConnectionError(
                f"no node of the Cluster owns slot {slot}; see `redis-cli --cluster check`"
            )
        return node

    async def group(self, keys: Iterable[bytes]) -> dict[Address | None, list[bytes]]:
        """Group keys by their owners; leave keys of slots without an owner out.

        Raises:
            RedisError, OSError: no node answers, or none of the slots has an owner.
        """
        await self.ensure_fresh()
        owned: list[bytes] = []
        unowned: list[bytes] = []
        for key in keys:
            (unowned if self._slots[slot_of_key(key)] is None else owned).append(key)
        if unowned:
            if not owned:
                await self.owner(unowned[0])
            self.invalidate(None)
        return await super().group(owned)

    async def owners(self) -> list[Address | None]:
        """Return the nodes that own slots; raises like `owner`."""
        await self.ensure_fresh()
        return [*sorted(self._owners())]

    def _owners(self) -> set[Address]:
        return {node for node in self._slots if node is not None}

    def redirected(self, address: Address | None, error: RedisError) -> bool:
        """Update the map from a redirection; true if it names the owner."""
        if isinstance(error, MovedError) and error.host != UNKNOWN:
            # An empty host means the node that answered.
            host = error.host or (address.host if address else "")
            moved = list(self._slots)
            moved[error.slot_id] = Address(host, error.port)
            self._update(moved)
            # Other slots have probably moved too.
            self.invalidate(None)
            return True
        # A slot that is being migrated keeps its owner until the end.
        if not isinstance(error, AskError | TryAgainError):
            self.invalidate(address)
        return False

    async def refresh(self) -> None:
        """Read all slots from the first node that answers."""
        # A seed is a host name, which may now belong to another node.
        known = [*{*self._seeds, *self._owners()}]
        nodes = sorted(known, key=lambda node: (node in self._suspects, random.random()))
        found = await self._first_answer(nodes)
        slots: list[Address | None] = [None] * SLOTS
        for (first, last), node in found.items():
            slots[first : last + 1] = [node] * (last - first + 1)
        self._update(slots)

    def _update(self, slots: list[Address | None]) -> None:
        if slots != self._slots:
            self._slots = slots
            self._notify(self._owners())

    async def _first_answer(self, nodes: list[Address]) -> Ranges:
        """Return the first answer; the next node is asked when one fails or is slow."""
        try:
            return await first_success([partial(self._slots_of, node) for node in nodes], STAGGER_S)
        except ExceptionGroup as failed:
            errors = failed.exceptions
        for error in errors:
            if isinstance(error, AuthenticationError):
                raise error
            if "cluster support disabled" in str(error):
                raise WrongDeploymentError(
                    f"{nodes[0]} is not a node of a Redis Cluster; use redis:// or rediss://"
                )
            if "unknown command" in str(error):
                raise WrongDeploymentError(
                    f"{nodes[0]} is not a node of a Redis Cluster; is it a Sentinel, or no Redis?"
                )
        names = ", ".join(map(str, nodes))
        # A timeout has no text.
        why = str(errors[-1]) or f"no answer within {ASK_TIMEOUT_S:g} s"
        raise RedisConnectionError(f"no node of the Cluster answers ({names}): {why}")

    async def _slots_of(self, node: Address) -> Ranges:
        client = self._connect(node)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                reply: list[Any] = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        finally:
            await run_shielded(client.aclose())
        if not reply:
            raise RedisConnectionError(f"{node} reports no slots; is it part of the Cluster?")
        return owners_in(reply, node)


def owners_in(reply: list[Any], asked: Address) -> Ranges:
    """Parse the reply of a node to `CLUSTER SLOTS`.

    Slots of an owner without an address are left out.
    """
    found: Ranges = {}
    # The replicas, listed after the owner, are ignored.
    for first, last, (name, port, _, *more), *_ in reply:
        # An empty host means the node that answered.
        host = (name or b"").decode() or asked.host
        if host == UNKNOWN:
            # With cluster-preferred-endpoint-type hostname, the IP address is in the metadata.
            facts = [fact.decode() for fact in more[0]] if more else []
            host = dict(zip(facts[::2], facts[1::2], strict=True)).get("ip", "")
        if host:
            found[first, last] = Address(host, port)
    return found
