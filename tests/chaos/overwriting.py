"""Faults in which somebody overwrites what statebroker keeps in Redis; mended by its command."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any, Final

from redis.asyncio.client import Pipeline

from broker.backend.stored import INTAKE_HEAD
from broker.engine.repair import damages, repair
from broker.errors import BrokerError
from broker.protocol.names import ShardKeys, config_key
from tests.chaos.acting import Fault, client_of
from tests.chaos.keyspace import SHARDS
from tests.chaos.plan import Step
from tests.chaos.testbed import Testbed

# Numbers and ids of meta that can be derived from the rest, so that nothing is lost.
FIELDS: Final = (
    *("epoch", "offset", "id", "previous", "covered", "published"),
    *("max_age", "max_count", "published_at", "log_bytes", "logged"),
    *("by_count", "by_age", "snap_offset", "snap_id", "fold_to", "fence", "digest"),
)
VALUES: Final = (b"nonsense!", b"", b"-1", b"1.5", b"9" * 40, b"\xff\xfe\x80", b"x" * 5000)
# What is no chunk before its entry in the queue: the last one is an entry without a chunk.
NO_CHUNKS: Final = (b"x", b"", b"x" * 5000, bytes(32) + b"\xff", b"\1" + bytes(21) + b"x")
MENDED_WITHIN_S: Final = 15.0


async def _mended(testbed: Testbed) -> bool:
    """Run the command until nothing is damaged; whether that was in time."""
    url, namespace = testbed.deployment.url, testbed.namespace
    with suppress(TimeoutError):
        async with asyncio.timeout(MENDED_WITHIN_S):
            while True:
                with suppress(BrokerError):
                    await repair(url, namespace, SHARDS, lost=None)
                    if not await damages(url, namespace):
                        return True
                await asyncio.sleep(0.2)
    return False


def _overwriting(damage: Any) -> Fault:
    async def act(testbed: Testbed, step: Step) -> bool:
        chance = random.Random(step.random)
        keys = ShardKeys.of(testbed.namespace, chance.randrange(SHARDS), SHARDS)
        async with testbed.lock_of("server"):
            with testbed.witness.not_measuring():
                async with client_of(testbed) as client:
                    pipe = client.pipeline(transaction=True)
                    damage(pipe, keys, chance, testbed.namespace)
                    await pipe.execute()
                await asyncio.sleep(min(1.0, step.duration))
                if not await _mended(testbed):
                    testbed.crashed(f"{step.fault}: `statebroker repair` did not mend it")
        return True

    return act


def _meta(pipe: Pipeline, keys: ShardKeys, chance: random.Random, _namespace: str) -> None:
    pipe.hset(keys.meta, chance.choice(FIELDS), chance.choice(VALUES))


def _meta_gone(pipe: Pipeline, keys: ShardKeys, chance: random.Random, _namespace: str) -> None:
    pipe.hdel(keys.meta, chance.choice([name for name in FIELDS if name != "epoch"]))


def _queue(pipe: Pipeline, keys: ShardKeys, chance: random.Random, _namespace: str) -> None:
    pipe.lpush(keys.queue, chance.choice(NO_CHUNKS))


def _records(pipe: Pipeline, keys: ShardKeys, chance: random.Random, _namespace: str) -> None:
    value = chance.choice(VALUES)
    pipe.hset(keys.intake, f"producer-{chance.randrange(3)}", value)
    pipe.hset(keys.workers, "somebody", value)


def _head(pipe: Pipeline, keys: ShardKeys, chance: random.Random, _namespace: str) -> None:
    pipe.hset(keys.intake, chance.choice((INTAKE_HEAD, ":limits")), chance.choice(VALUES))


def _config(pipe: Pipeline, _keys: ShardKeys, chance: random.Random, namespace: str) -> None:
    field, value = chance.choice(("protocol", "shards")), chance.choice(VALUES)
    pipe.hset(config_key(namespace), field, value)


def _types(pipe: Pipeline, keys: ShardKeys, chance: random.Random, _namespace: str) -> None:
    key = chance.choice((keys.ready, keys.lease, keys.workers, keys.dead))
    pipe.delete(key)
    pipe.sadd(key, "x")


OVERWRITING: Final[dict[str, Fault]] = {
    "meta_overwritten": _overwriting(_meta),
    "meta_field_deleted": _overwriting(_meta_gone),
    "queue_overwritten": _overwriting(_queue),
    "records_overwritten": _overwriting(_records),
    "head_overwritten": _overwriting(_head),
    "config_overwritten": _overwriting(_config),
    "type_replaced": _overwriting(_types),
}
