"""Validate the promise "never silently stale". Pure functions."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

from broker.testing.history import History, Violation
from broker.testing.records import Headed, Seen, ShardPosition

LIVE = "live"
SLACK_S = 0.05
"""Maximum time in the recording process between two reads that belong together."""


def never_silently_stale(history: History, bound: float = 3.0) -> list[Violation]:
    """Check that a live replica holds everything published before its lag, which is in bounds.

    The lag must be sampled before the status, so that a process suspended between the two does not
    look worse than it was.

    A head that the witness read must be in the history of every replica that later claims to have
    been current after that read. If the history was rewritten in between, nothing is checked.

    Args:
        history: with samples of replicas and of the head.
        bound: staleness bound of the replicas in seconds.
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


def _missed(
    history: History, seen: Seen, place: ShardPosition, heads: list[Headed]
) -> Violation | None:
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
