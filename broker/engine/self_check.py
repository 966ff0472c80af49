"""Comparing a replica's shards with Redis, and correcting the keys that differ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from broker.backend.session import Session
from broker.core.effects import Effect, KeysRepaired
from broker.core.shard import ShardState
from broker.engine.verifier import SnapshotMovedError, Verifier, keys_of
from broker.errors import BackendError
from broker.model import ABSENT, Difference, Status, Verification
from broker.protocol.codec import pack_value
from broker.runtime.backoff import Backoff

log = logging.getLogger(__name__)

TRIES = 20
PAUSE_FIRST = 0.02
PAUSE_MAX = 2.0
SHOWN_KEYS = 5

T = TypeVar("T")


async def retry_until_stable(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Call `ask` until the history does not move during a call, and return its result.

    Raises:
        BackendError: it moved during each of 20 calls, which take about half a minute.
    """
    retry = Backoff(PAUSE_FIRST, PAUSE_MAX)
    for _ in range(TRIES):
        try:
            return await ask()
        except SnapshotMovedError as error:
            moved = error
        await asyncio.sleep(retry.next())
    raise BackendError(
        f"in {TRIES} tries no two readings fitted together ({moved}); try again when less is "
        "written, or raise global_data_update_interval"
    ) from moved


async def verified(session: Session, shards: list[ShardState]) -> Verification:
    """Compare every shard with Redis' history at the shard's position; changes nothing.

    Raises:
        BackendError: Redis failed, or a shard did not stay live and unchanged long enough.
    """
    keys = ranges = size = 0
    differences: list[Difference] = []
    for shard in shards:
        verifier = Verifier(session, shard.shard)
        compared, differing, found = await retry_until_stable(
            partial(_compare_keys, verifier, shard)
        )
        keys += compared
        ranges += differing
        differences += found
        in_tables, found = await retry_until_stable(partial(_compare_tables, verifier, shard))
        keys += in_tables
        differences += found
        ranges += bool(found)
        size += verifier.bytes_read
    return Verification(keys, ranges, tuple(differences), size)


async def _compare_keys(verifier: Verifier, shard: ShardState) -> tuple[int, int, list[Difference]]:
    """Compare a shard's keys; return how many there are, how many ranges differ, and which keys."""
    _check_live(shard)
    held, position = shard.values.copy(), shard.position
    wrong = await verifier.differing(held, position)
    if not wrong:
        return len(held), 0, []
    right, _ = await verifier.content(wrong, lambda: position)
    found = [
        Difference(key, shard.shard, position.offset, held.get(key, ABSENT), right.get(key, ABSENT))
        for key in sorted({*await keys_of(held, wrong), *right})
        if not _are_same(held.get(key, ABSENT), right.get(key, ABSENT))
    ]
    return len(held), len(wrong), found


async def _compare_tables(
    verifier: Verifier, shard: ShardState, *, repairs: bool = False
) -> tuple[int, list[Difference]]:
    """Compare a shard's tables; return how many keys there are, and which differ.

    With `repairs` the tables of Redis replace tables that differ.
    """
    _check_live(shard)
    held = shard.tables
    if held is None or not (held.tables or await verifier.has_tables()):
        return 0, []
    right = await verifier.tables(lambda: shard.position)
    # Nothing was awaited since the last read of the position.
    _check_live(shard)
    if shard.tables is not held:
        raise SnapshotMovedError(f"shard {shard.shard} was loaded meanwhile")
    keys = sum(map(len, held.tables.values()))
    found = [
        Difference(name, shard.shard, shard.position.offset, mine, theirs)
        for name, mine, theirs in held.differences(right)
    ]
    if found and repairs:
        shard.content.tables = right
    return keys, found


async def check_and_repair(
    session: Session,
    shard: ShardState,
    repair: Callable[[Mapping[str, Any], Iterable[str]], Sequence[Effect]],
) -> None:
    """Compare one shard with Redis; correct and log the keys that differ, and only these.

    Counts `self_checks`, `self_checks_failed`, `keys_repaired`, and `full_state_altered` where the
    replica equals the full state, but no scheduler wrote it so.

    Args:
        session: connected, the namespace known.
        shard: if it is not live, the check waits for that.
        repair: calls `shard.repair` with the content of the history, and carries out the effects.

    Raises:
        BackendError: as `verified`; nothing was changed.
    """
    verifier = Verifier(session, shard.shard)

    async def compare() -> tuple[set[int], list[str]]:
        _check_live(shard)
        held = shard.values.copy()
        wrong = await verifier.differing(held, shard.position)
        return wrong, await keys_of(held, wrong) if wrong else []

    async def correct() -> list[str]:
        _check_live(shard)
        # Nothing is awaited between the last read of the position and the repair.
        right, _ = await verifier.content(wrong, lambda: shard.position)
        effects = repair(right, among)
        return [key for one in effects if isinstance(one, KeysRepaired) for key in one.keys]

    wrong, among = await retry_until_stable(compare)
    shard.counts["self_checks"] += 1
    _, differing = await retry_until_stable(partial(_compare_tables, verifier, shard, repairs=True))
    if differing:
        shard.counts["self_checks_failed"] += 1
        shard.counts["keys_repaired"] += len(differing)
        log.error(
            "self_check_repaired shard=%d tables=%d keys first=%s",
            *(shard.shard, len(differing), [one.key for one in differing[:SHOWN_KEYS]]),
        )
    if not wrong:
        return
    shard.counts["self_checks_failed"] += 1
    keys = await retry_until_stable(correct)
    if keys:
        log.error(
            "self_check_repaired shard=%d ranges=%d keys=%d first=%s",
            *(shard.shard, len(wrong), len(keys), sorted(keys)[:SHOWN_KEYS]),
        )
    else:
        shard.counts["full_state_altered"] += 1
        log.error(
            "full_state_altered shard=%d ranges=%s fix=statebroker verify shows the keys",
            *(shard.shard, ",".join(f"{at:02x}" for at in sorted(wrong))),
        )


def _check_live(shard: ShardState) -> None:
    if shard.phase is not Status.LIVE:
        raise SnapshotMovedError(f"shard {shard.shard} is {shard.phase}")


def _are_same(one: Any, other: Any) -> bool:
    if one is ABSENT or other is ABSENT:
        return one is other
    # As bytes, because 1, 1.0 and True are equal in Python.
    return pack_value(one) == pack_value(other)
