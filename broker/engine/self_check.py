"""Comparing a replica's shards with Redis, and correcting the keys that differ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from broker.backend.session import Session
from broker.core.effects import Effect, KeysRepaired
from broker.core.shard import ShardState
from broker.engine.state_copy import StateCopy
from broker.engine.verifier import SnapshotMovedError, Verifier
from broker.errors import BackendError, DecodeError
from broker.model import ABSENT, Absent, Difference, Status, Verification
from broker.protocol.cells import are_same, value_of
from broker.protocol.digest import range_of
from broker.protocol.messages import Cell, Value
from broker.runtime.backoff import Backoff

log = logging.getLogger(__name__)

TRIES = 20
PAUSE_FIRST = 0.02
PAUSE_MAX = 2.0
# Carries out the effects of a shard's input.
Perform = Callable[[ShardState, Sequence[Effect]], None]

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
    damaged: list[str] = []
    for shard in shards:
        verifier = Verifier(session, shard.shard)
        compared, differing, found = await retry_until_stable(
            partial(_compare_keys, verifier, shard)
        )
        keys += compared
        ranges += differing
        differences += found
        try:
            in_tables, found = await retry_until_stable(partial(_compare_tables, verifier, shard))
        except DecodeError as error:
            damaged.append(f"shard {shard.shard}: {error}")
        else:
            keys += in_tables
            differences += found
            ranges += bool(found)
        size += verifier.bytes_read
        damaged += [
            f"key {key!a} of shard {shard.shard}"
            for key in sorted(verifier.damaged | shard.damaged)
        ]
    return Verification(keys, ranges, tuple(differences), size, tuple(damaged))


async def _compare_keys(verifier: Verifier, shard: ShardState) -> tuple[int, int, list[Difference]]:
    """Compare a shard's keys; return how many there are, how many ranges differ, and which keys."""
    _check_live(shard)
    copy, position = StateCopy(shard.values), shard.position
    wrong = await verifier.differing(copy, position)
    if not wrong:
        return len(copy), 0, []
    held = await copy.part(wrong)
    right, _ = await verifier.content(wrong, lambda: position)
    found = [
        Difference(
            *(key, shard.shard, position.offset),
            *(_shown(held.get(key, ABSENT)), _shown(right.get(key, ABSENT))),
        )
        for key in sorted({*held, *right} - verifier.damaged)
        if not _are_same(held.get(key, ABSENT), right.get(key, ABSENT))
    ]
    return len(copy), len(wrong), found


async def _compare_tables(
    verifier: Verifier, shard: ShardState, perform: Perform | None = None
) -> tuple[int, list[Difference]]:
    """Compare a shard's tables; return how many keys there are, and which differ.

    With `perform` the tables of Redis replace tables that differ, if the difference lasts.

    Raises:
        DecodeError: the tables of Redis are damaged, or it is not decided which ones are.
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
    if found and perform is not None:
        if lost := held.lost_in(right):
            raise DecodeError(f"the full state lacks keys of {lost}, which only grows")
        if not shard.doubts.confirms_tables([one.key for one in found]):
            raise DecodeError(
                f"{len(found)} keys of tables differ from the full state (first: {found[0].key}); "
                "if they still do after two more full states, they are repaired"
            )
        perform(shard, shard.repair_tables(right, [one.key for one in found]))
    return keys, found


async def check_and_repair(
    session: Session, shard: ShardState, perform: Perform, is_watched: Callable[[], bool]
) -> None:
    """Compare one shard with Redis; correct the keys that differ, and only these.

    The shard counts `self_checks`, `self_checks_failed`, `keys_repaired`, and `full_state_altered`
    where the replica equals the full state, but no scheduler wrote it so.

    Args:
        session: connected, the namespace known.
        shard: if it is not live, the check waits for that.
        perform: carries out the effects of a correction.
        is_watched: whether there are readers of changes.

    Raises:
        BackendError: as `verified`; no key was changed.
    """
    verifier = Verifier(session, shard.shard)

    async def compare() -> tuple[set[int], Collection[str]]:
        _check_live(shard)
        copy = StateCopy(shard.values)
        wrong = await verifier.differing(copy, shard.position)
        return wrong, await copy.part(wrong) if wrong else ()

    async def correct() -> bool:
        _check_live(shard)
        # Nothing is awaited between the last read of the position and the repair.
        right, _ = await verifier.content(wrong, lambda: shard.position)
        # What cannot be read there may be right here.
        readable = [
            key
            for key in {*among, *shard.damaged}
            if key not in verifier.damaged and range_of(key) in wrong
        ]
        effects = shard.repair(right, readable, watched=is_watched())
        perform(shard, effects)
        return any(isinstance(effect, KeysRepaired) for effect in effects)

    wrong, among = await retry_until_stable(compare)
    _, in_tables = await retry_until_stable(partial(_compare_tables, verifier, shard, perform))
    shard.self_checked(keys_differ=bool(wrong), tables_differ=bool(in_tables))
    # Where the full state is not what schedulers wrote, it says nothing about the replica.
    altered = wrong & (await retry_until_stable(verifier.altered)).keys() if wrong else set()
    wrong -= altered
    if wrong and not await retry_until_stable(correct):
        altered |= wrong
    shard.compared(altered)
    if altered:
        log.error(
            "full_state_altered shard=%d ranges=%s fix=statebroker verify shows the keys",
            *(shard.shard, ",".join(f"{at:02x}" for at in sorted(altered))),
        )


def _check_live(shard: ShardState) -> None:
    if shard.phase is not Status.LIVE:
        raise SnapshotMovedError(f"shard {shard.shard} is {shard.phase}")


def _shown(cell: Cell | Absent) -> Value | Absent:
    """Return the value of a cell, or the cell itself where that cannot be read."""
    try:
        return cell if cell is ABSENT else value_of(cell)
    except DecodeError:
        return cell


def _are_same(one: Cell | Absent, other: Cell | Absent) -> bool:
    if one is ABSENT or other is ABSENT:
        return one is other
    return are_same(one, other)
