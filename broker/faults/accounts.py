"""The promise that everything is accounted for: each delta is somewhere. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from math import inf

from broker.faults.history import History
from broker.faults.lineage import readable
from broker.faults.records import Appended, Applied, Counted, Died, Forgot

NOTICED_WITHIN_S = 8.0
"""Faults that come together may keep a producer so long from seeing that something is missing."""

Writer = tuple[str, int, int]  # node, incarnation, shard


def accounted(history: History) -> list[str]:
    """What producers buffered was accepted or waits; what was accepted is there or told as lost."""
    return [
        *_producers(history),
        *_replicas(history),
        *_losses_told(history),
        *_losses_explained(history),
    ]


def _producers(history: History) -> list[str]:
    found = []
    for counted in history.of(Counted):
        n = counted.counters
        if n["buffered"] != n["accepted"] + n["conflated"] + n["pending"]:
            found.append(
                f"producer {counted.node}: buffered {n['buffered']} is not accepted "
                f"{n['accepted']} + conflated {n['conflated']} + pending {n['pending']}"
            )
        if n["lost"] < counted.reported:
            found.append(
                f"producer {counted.node}: counts {n['lost']} lost, but told {counted.reported}"
            )
    return found


def _replicas(history: History) -> list[str]:
    found = []
    for batch in history.of(Applied):
        total = batch.applied + batch.superseded + batch.refused + batch.skipped
        logged = history.lineage.batches.get(batch.place)
        if total != batch.deltas or (logged is not None and logged.deltas != batch.deltas):
            found.append(
                f"replica {batch.replica}, batch {batch.place.offset}: {batch.deltas} deltas are "
                f"not {batch.applied} applied + {batch.superseded} superseded + {batch.refused} "
                f"refused + {batch.skipped} skipped"
            )
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
    """Return, for each writer, the chunks that Redis accepted; of each the last acceptance."""
    found: dict[Writer, dict[int, Appended]] = defaultdict(dict)
    for appended in history.of(Appended):
        writer = (appended.node, appended.incarnation, appended.shard)
        found[writer][appended.number] = appended
    return found


def _losses_told(history: History) -> list[str]:
    """Exactly what is not in the final history has been told as lost, by those who still can."""
    found = []
    there, taken = published(history), accepted(history)
    # When it was forgotten is not known; at the latest then.
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
            found.append(
                f"producer {counted.node}: {needless} lost chunks were so new when the server "
                "forgot them that they could have been sent again"
            )
        for name, told in (("counts", counted.counters["lost"]), ("told", counted.reported)):
            if told != missing:
                found.append(
                    f"producer {counted.node} {name} {told} deltas lost; {missing} of those "
                    "accepted are not in the history"
                )
    return found


def _losses_explained(history: History) -> list[str]:
    """What a producer that died had got accepted is there, unless the server forgot it too late."""
    found = []
    there, taken = published(history), accepted(history)
    deaths = sorted(history.of(Died), key=lambda died: died.at)
    forgot = [record.at for record in history.of(Forgot)]
    final = {
        (counted.node, incarnation, shard)
        for counted in history.of(Counted)
        if counted.final
        for shard, incarnation in enumerate(counted.incarnations)
    }
    for writer, chunks in taken.items():
        if writer in final:
            continue
        missing = [appended for number, appended in chunks.items() if number not in there[writer]]
        for appended in missing:
            died = next(
                (d.at for d in deaths if d.node == appended.node and d.at >= appended.at), None
            )
            if died is None:
                found.append(f"{appended.node} neither died nor told its last counters")
                break
            if not any(appended.at - 1 <= at for at in forgot):
                found.append(
                    f"chunk {appended.number} of {appended.node} (incarnation "
                    f"{appended.incarnation}, shard {appended.shard}) was accepted, and is not in "
                    "the history, though the server forgot nothing since"
                )
    return found
