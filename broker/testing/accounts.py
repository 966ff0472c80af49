"""Validate the promise "accounted": counters add up for every delta. Pure functions."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from itertools import accumulate
from math import inf

from broker.testing.history import History, Violation
from broker.testing.lineage import readable
from broker.testing.records import (
    Appended,
    Applied,
    Balanced,
    Counted,
    Died,
    Fenced,
    Forgot,
    ShardPosition,
    Tallied,
)

NOTICED_WITHIN_S = 8.0
"""How long it may take a producer to detect a loss while several faults overlap."""

Writer = tuple[str, int, int]  # node, incarnation, shard

_FATES = ("applied", "superseded", "refused", "skipped")


def accounted(history: History) -> list[Violation]:
    """Check that counters add up from the call to the replica, and that losses were reported.

    called = buffered = accepted + conflated + pending; accepted = published + pending;
    published = applied + superseded + refused + skipped on every replica; of the accepted deltas,
    exactly those reported as lost are not in the history.
    """
    return [
        *_producers(history),
        *_shards(history),
        *_batches(history),
        *_replicas(history),
        *_losses_reported(history),
        *_losses_explained(history),
        *_never_heard(history),
        *_fenced(history),
    ]


def _producers(history: History) -> list[Violation]:
    found = []
    for counted in history.of(Counted):
        n = counted.counters
        who = f"producer {counted.node}"
        if n["buffered"] != counted.called:
            words = f"{who}: calls gave it {counted.called} deltas, it buffered {n['buffered']}"
            found.append(Violation(words, counted.at))
        if n["buffered"] != n["accepted"] + n["conflated"] + n["pending"]:
            words = (
                f"{who}: buffered {n['buffered']} is not accepted "
                f"{n['accepted']} + conflated {n['conflated']} + pending {n['pending']}"
            )
            found.append(Violation(words, counted.at))
        if n["lost"] < counted.reported:
            words = f"{who}: counts {n['lost']} lost, but reported {counted.reported}"
            found.append(Violation(words, counted.at))
    return found


def _shards(history: History) -> list[Violation]:
    """Check the counters of Redis: accepted = published + pending."""
    found = []
    totals: dict[ShardPosition, int] = {}
    for balanced in history.of(Balanced):
        waits = balanced.accepted - balanced.published
        what = f"shard {balanced.place.shard} at batch {balanced.place.offset}"
        if waits != balanced.in_queue:
            words = (
                f"{what}: accepted {balanced.accepted} is not published {balanced.published} + "
                f"pending {balanced.in_queue} in the queue"
            )
            found.append(Violation(words, balanced.at))
        total = _total(history, balanced.place, totals)
        if total is None:
            continue
        if total != balanced.published:
            words = (
                f"{what}: counts {balanced.published} deltas published, its batches hold {total}"
            )
            found.append(Violation(words, balanced.at))
    return found


def _total(history: History, place: ShardPosition, totals: dict[ShardPosition, int]) -> int | None:
    """Return the deltas of all batches up to a position; None if the beginning was not recorded."""
    path = []
    at = place
    while at in history.lineage.batches and at not in totals:
        path.append(at)
        at = history.lineage.before(at)
    if at not in totals and at.offset:
        return None
    total = totals.get(at, 0)
    for step in reversed(path):
        total += history.lineage.batches[step].deltas
        totals[step] = total
    return total


def _batches(history: History) -> list[Violation]:
    found = []
    for batch in history.of(Applied):
        total = batch.applied + batch.superseded + batch.refused + batch.skipped
        logged = history.lineage.batches.get(batch.place)
        if total != batch.deltas or (logged is not None and logged.deltas != batch.deltas):
            words = (
                f"replica {batch.replica}, batch {batch.place.offset}: {batch.deltas} deltas are "
                f"not {batch.applied} applied + {batch.superseded} superseded + {batch.refused} "
                f"refused + {batch.skipped} skipped"
            )
            found.append(Violation(words, batch.at))
    return found


def _replicas(history: History) -> list[Violation]:
    """Check that the counters of a replica are the sums of the batches that it applied."""
    through: dict[str, list[Applied]] = defaultdict(list)
    for batch in history.of(Applied):
        through[batch.replica].append(batch)
    sums = {
        replica: list(accumulate((batch.deltas for batch in batches), initial=0))
        for replica, batches in through.items()
    }
    found = []
    for tallied in history.of(Tallied):
        batches = through[tallied.replica]
        count = bisect_right(batches, tallied.at, key=lambda batch: batch.at)
        deltas = sums[tallied.replica][count] if batches else 0
        parts = [tallied.counters[f"deltas_{fate}"] for fate in _FATES]
        if sum(parts) != deltas or tallied.counters["batches_applied"] != count:
            words = (
                f"replica {tallied.replica} went through {count} batches of {deltas} deltas, and "
                f"counts {tallied.counters['batches_applied']} with "
                + " + ".join(f"{n} {fate}" for n, fate in zip(parts, _FATES, strict=True))
            )
            found.append(Violation(words, tallied.at))
    return found


def published(history: History) -> dict[Writer, dict[int, int]]:
    """Return, for each writer, the chunks in the final history and how many deltas each holds."""
    found: dict[Writer, dict[int, int]] = defaultdict(dict)
    for shard, head in history.heads.items():
        for batch in history.lineage.chain(head):
            for chunk in readable(batch.chunks):
                found[chunk.node, chunk.incarnation, shard][chunk.number] = chunk.deltas
    return found


def accepted(history: History) -> dict[Writer, dict[int, Appended]]:
    """Return, for each writer, the last acceptance of each chunk that Redis accepted."""
    found: dict[Writer, dict[int, Appended]] = defaultdict(dict)
    for appended in history.of(Appended):
        writer = (appended.node, appended.incarnation, appended.shard)
        found[writer][appended.number] = appended
    return found


def _losses_reported(history: History) -> list[Violation]:
    """Check that producers that are alive reported exactly the missing deltas as lost."""
    found = []
    there, taken = published(history), accepted(history)
    # The time of the loss is not recorded; this is the latest possible.
    last = max((forgot.at for forgot in history.of(Forgot)), default=inf)
    for counted in history.of(Counted):
        if not counted.final:
            continue
        gone = [
            appended
            for shard, incarnation in enumerate(counted.incarnations)
            for number, appended in taken[counted.node, incarnation, shard].items()
            if number not in there[counted.node, incarnation, shard]
        ]
        missing = sum(appended.deltas for appended in gone)
        needless = sum(last - appended.at < counted.keeps - NOTICED_WITHIN_S for appended in gone)
        if needless:
            words = (
                f"producer {counted.node}: {needless} lost chunks were so new when the server "
                "forgot them that they could have been sent again"
            )
            found.append(Violation(words, last))
        for verb, lost in (("counts", counted.counters["lost"]), ("reported", counted.reported)):
            if lost != missing:
                words = (
                    f"producer {counted.node} {verb} {lost} deltas lost; {missing} of those "
                    "accepted are not in the history"
                )
                found.append(Violation(words, gone[0].at if gone else None))
    return found


def _ends(history: History) -> list[Died | Fenced]:
    """Return the ends of processes, after which they could not send anything again."""
    return sorted([*history.of(Died), *history.of(Fenced)], key=lambda end: end.at)


def _last_reports(history: History) -> set[Writer]:
    """Return the writers that recorded final counters, after everything was accepted."""
    return {
        (counted.node, incarnation, shard)
        for counted in history.of(Counted)
        if counted.final
        for shard, incarnation in enumerate(counted.incarnations)
    }


def _losses_explained(history: History) -> list[Violation]:
    """Check that accepted chunks of ended producers exist, unless the server lost them later."""
    found = []
    there, taken, final = published(history), accepted(history), _last_reports(history)
    ends = _ends(history)
    forgot = [record.at for record in history.of(Forgot)]
    for writer, chunks in taken.items():
        if writer in final:
            continue
        missing = [appended for number, appended in chunks.items() if number not in there[writer]]
        for appended in missing:
            ended = next((e for e in ends if e.node == appended.node and e.at >= appended.at), None)
            if ended is None:
                words = f"{appended.node} neither died nor reported its last counters"
                found.append(Violation(words, appended.at))
                break
            if not any(appended.at - 1 <= at for at in forgot):
                words = (
                    f"chunk {appended.number} of {appended.node} (incarnation "
                    f"{appended.incarnation}, shard {appended.shard}) was accepted, and is not in "
                    "the history, though the server forgot nothing since"
                )
                found.append(Violation(words, appended.at))
    return found


def _never_heard(history: History) -> list[Violation]:
    """Check that at most the chunk in flight at the end of its writer was published unnoticed."""
    found = []
    taken, final = accepted(history), _last_reports(history)
    nodes = {node for node, _, _ in taken}
    for writer, chunks in published(history).items():
        extra = chunks.keys() - taken[writer].keys()
        if writer[0] in nodes and len(extra) > (writer not in final):
            words = (
                f"chunks {sorted(extra)} of {writer[0]} (incarnation {writer[1]}, shard "
                f"{writer[2]}) are in the history; their producer never heard that they were "
                "accepted"
            )
            found.append(Violation(words))
    return found


def _fenced(history: History) -> list[Violation]:
    """Check that a fenced producer got a clear error, and that another process had its name."""
    found = []
    holders: dict[tuple[str, int], int] = defaultdict(int)
    for appended in history.of(Appended):
        place = (appended.node, appended.shard)
        holders[place] = max(holders[place], appended.incarnation)
    for fenced in history.of(Fenced):
        if repr(fenced.node) not in fenced.message or "another process" not in fenced.message:
            words = f"producer {fenced.node} was fenced with an unclear error: {fenced.message}"
            found.append(Violation(words, fenced.at))
        if not any(
            holders[fenced.node, shard] > incarnation
            for shard, incarnation in enumerate(fenced.incarnations)
        ):
            words = f"producer {fenced.node} was fenced, though no process took its name"
            found.append(Violation(words, fenced.at))
    return found
