"""The promise that is hardest to judge: never silently stale. Pure functions."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

from broker.testing.history import History, Violation
from broker.testing.records import Headed, Place, Seen

LIVE = "live"
SLACK_S = 0.05
"""Most seconds that may pass in the recording process between two reads that belong together."""


def never_silently_stale(history: History, bound: float = 3.0) -> list[Violation]:
    """A live replica holds all that was published up to its lag ago, and its lag is in the bound.

    The lag is to be read before the status, so that a process which is stopped between the two
    cannot look worse than it was.

    Judged by the witness: what it read as the head must be in the history of a replica that says,
    later, that it was current as of a moment after that. Where the server went back in between,
    nothing can be said.

    Args:
        history: with samples of replicas and of the head.
        bound: seconds, the staleness bound of the replicas.
    """
    heads: dict[int, list[Headed]] = defaultdict(list)
    for head in history.of(Headed):
        heads[head.place.shard].append(head)
    found = []
    for seen in history.of(Seen):
        if seen.status != LIVE:
            continue
        if seen.lag > bound + SLACK_S:
            words = (
                f"replica {seen.replica} was live with a lag of {seen.lag:.2f} s; the bound is "
                f"{bound:g} s"
            )
            found.append(Violation(words, seen.at))
        for place in seen.places:
            if place.shard in heads:
                missed = _missed(history, seen, place, heads[place.shard])
                found += [missed] if missed else []
    return found


def _missed(history: History, seen: Seen, place: Place, heads: list[Headed]) -> Violation | None:
    proved = seen.at - seen.lag - SLACK_S
    index = bisect_right(heads, proved, key=lambda head: head.until) - 1
    after = bisect_right(heads, seen.at, key=lambda head: head.at)
    if index < 0 or after == len(heads):
        return None
    head = heads[index]
    if not all(
        history.lineage.contains(later.place, head.place) for later in heads[index + 1 : after + 1]
    ):
        return None
    if history.lineage.contains(place, head.place):
        return None
    words = (
        f"replica {seen.replica} was live with a lag of {seen.lag:.2f} s, and did not hold batch "
        f"{head.place.offset} of shard {place.shard}, published {seen.at - head.until:.2f} s before"
        f" (it was at {place.offset})"
    )
    return Violation(words, seen.at)
