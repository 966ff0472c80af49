"""Comparing a replica's shards with Redis, and correcting the keys that differ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from broker.backend.session import Session
from broker.core.effects import Effect, KeysRepaired
from broker.core.shard import ShardState
from broker.engine.state_copy import StateCopy
from broker.engine.verifier import SnapshotMovedError, Verifier
from broker.errors import BackendError, DecodeError
from broker.model import ABSENT, Absent, Difference, Status, Verification
from broker.protocol.cells import are_same, value_of
from broker.protocol.digest import range_of
from broker.protocol.messages import Cell, TableKey, Value
from broker.runtime.backoff import Backoff

log = logging.getLogger(__name__)

TRIES = 20
PAUSE_FIRST = 0.02
PAUSE_MAX = 2.0
SHOWN_BLOCKS = 5
# Carries out the effects of a shard's input.
Perform = Callable[[ShardState, Sequence[Effect]], None]

T = TypeVar("T")
Revisions: TypeAlias = Mapping[TableKey, int]


@dataclass(frozen=True, slots=True)
class ComparedTables:
    """The result of comparing a shard's tables.

    Attributes:
        keys: how many have a value.
        differences: those that differ from the history, as far as the full state can be read.
        doubted: what of the full state cannot be read, or is not what schedulers wrote.
    """

    keys: int = 0
    differences: Sequence[Difference] = ()
    doubted: tuple[str, ...] = ()


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
        compared, differing, found, revisions = await retry_until_stable(
            partial(_compare_keys, verifier, shard)
        )
        keys += compared
        ranges += differing
        differences += found
        tables = await retry_until_stable(partial(_compare_tables, verifier, shard, revisions))
        keys += tables.keys
        differences += tables.differences
        ranges += bool(tables.differences)
        size += verifier.bytes_read
        damaged += [
            f"key {key!a} of shard {shard.shard}"
            for key in sorted(verifier.damaged | shard.damaged)
        ]
        damaged += tables.doubted
    return Verification(keys, ranges, tuple(differences), size, tuple(damaged))


async def _compare_keys(
    verifier: Verifier, shard: ShardState
) -> tuple[int, int, list[Difference], Revisions]:
    """Compare a shard's keys; return how many there are, how many ranges differ, and which keys.

    Also the revisions of its tables at that position.
    """
    _check_live(shard)
    copy, position, revisions = StateCopy(shard.values), shard.position, _revisions(shard)
    wrong = await verifier.differing(copy, position)
    if not wrong:
        return len(copy), 0, [], revisions
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
    return len(copy), len(wrong), found, revisions


def _revisions(shard: ShardState) -> Revisions:
    return {} if shard.tables is None else shard.tables.revisions()


async def _compare_tables(
    verifier: Verifier, shard: ShardState, revisions: Revisions, perform: Perform | None = None
) -> ComparedTables:
    """Compare a shard's tables, by their digest where that suffices.

    Args:
        verifier: that compared the keys.
        shard: the shard.
        revisions: of its tables at that time.
        perform: if given, the tables of Redis replace tables that differ, if they are what
            schedulers wrote and lack nothing.

    Raises:
        DecodeError: the full state lacks keys of a table.
    """
    _check_live(shard)
    held = shard.tables
    if held is None:
        return ComparedTables()
    keys = sum(map(len, held.tables.values()))
    if not (held.tables or held.damaged or await verifier.has_tables()):
        return ComparedTables()
    known = verifier.tables_digest
    is_same = not held.damaged and held.revisions() == revisions
    if is_same and known is not None and held.digest() == known:
        # Nothing was read of them.
        return ComparedTables(keys)
    right = await verifier.tables(lambda: shard.position)
    # Nothing was awaited since the last read of the position.
    _check_live(shard)
    if shard.tables is not held:
        raise SnapshotMovedError(f"shard {shard.shard} was loaded meanwhile")
    doubted = verifier.doubts_of(right)
    found = [
        Difference(name, shard.shard, shard.position.offset, mine, theirs)
        for name, mine, theirs in held.differences(right)
    ]
    if (found or held.damaged) and perform is not None and not doubted:
        if lost := held.lost_in(right):
            raise DecodeError(f"the full state lacks keys of {lost}, which only grows")
        perform(shard, shard.repair_tables(right, [one.key for one in found]))
    return ComparedTables(keys, found, doubted)


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

    async def compare() -> tuple[set[int], Collection[str], Revisions]:
        _check_live(shard)
        copy, revisions = StateCopy(shard.values), _revisions(shard)
        wrong = await verifier.differing(copy, shard.position)
        return wrong, await copy.part(wrong) if wrong else (), revisions

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

    wrong, among, revisions = await retry_until_stable(compare)
    tables = await retry_until_stable(partial(_compare_tables, verifier, shard, revisions, perform))
    shard.self_checked(keys_differ=bool(wrong), tables_differ=bool(tables.differences))
    shard.compared_tables(tables.doubted)
    if tables.doubted:
        log.error(
            "tables_altered shard=%d blocks=%s fix=statebroker verify shows the rows",
            *(shard.shard, ascii(tables.doubted[:SHOWN_BLOCKS])),
        )
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
