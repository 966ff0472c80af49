"""Conditions of a server that may change while we run: eviction, and memory for writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker.backend.connections import translated
from broker.backend.topology import Client
from broker.errors import UnsupportedServerError
from broker.protocol.names import ShardKeys


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a server says about itself now.

    Attributes:
        policy: its maxmemory-policy.
        evicted: keys that it evicted since it started.
        memory: bytes that count for its limit.
        max_memory: the limit; 0 for none.
        run: id of the server process.
    """

    policy: str
    evicted: int
    memory: int
    max_memory: int
    run: str = ""

    @property
    def eviction_fault(self) -> str:
        """Why nothing that is read now can be trusted to be complete; empty if it can."""
        if self.policy == "noeviction":
            return ""
        return (
            f"Redis has maxmemory-policy {self.policy}, which silently drops state ("
            f"{self.evicted} keys evicted so far); run CONFIG SET maxmemory-policy noeviction, "
            "then `statebroker verify`"
        )

    @property
    def fault(self) -> str:
        """What is wrong, and how to mend it; empty if nothing is."""
        if self.eviction_fault or not self.max_memory or self.memory < self.max_memory:
            return self.eviction_fault
        return (
            f"writing stands still: Redis is out of memory ({self.memory} bytes, maxmemory "
            f"{self.max_memory}); raise maxmemory or store less"
        )


async def conditions(client: Client, keys: ShardKeys) -> Conditions:
    """Ask the server that owns a shard.

    Raises:
        BackendError: Redis failed, or does not permit INFO.
    """
    async with translated("asking for memory and eviction (INFO)"):
        pipe = client.pipeline(transaction=False)
        pipe.info("memory")
        pipe.info("stats")
        pipe.info("server")
        # The key routes the pipeline.
        pipe.hmget(keys.meta, ["epoch"])
        memory, stats, server, _ = await pipe.execute()
    return Conditions(
        policy=str(memory.get("maxmemory_policy", "noeviction")),
        evicted=_number(stats, "evicted_keys"),
        memory=_number(memory, "used_memory") - _number(memory, "mem_not_counted_for_evict"),
        max_memory=_number(memory, "maxmemory"),
        run=str(server.get("run_id", "")),
    )


async def ensure_no_eviction(
    client: Client, keys: ShardKeys, before: Conditions | None = None
) -> Conditions:
    """Return the conditions under which what is read is what was written.

    Args:
        client: to ask with.
        keys: the shard.
        before: conditions at the begin of a read that ends now.

    Raises:
        UnsupportedServerError: the server may evict keys, or did so during the read.
        BackendError: see `conditions`.
    """
    now = await conditions(client, keys)
    if now.eviction_fault:
        raise UnsupportedServerError(now.eviction_fault)
    if before is not None and now.evicted > before.evicted:
        raise UnsupportedServerError(
            f"Redis evicted {now.evicted - before.evicted} keys while state was read; it is read "
            "again"
        )
    return now


def _number(info: dict[str, Any], name: str) -> int:
    found = info.get(name, 0)
    return found if isinstance(found, int) else 0
