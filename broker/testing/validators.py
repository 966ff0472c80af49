"""One pure function for each promise: a history in, violations out.

An empty list means that the history shows no violation. Tests prove that each validator finds
violations (tests/unit/testing/test_validators.py).
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise

from broker.testing.accounts import accounted
from broker.testing.freshness import never_silently_stale
from broker.testing.history import WITNESS, History, Violation
from broker.testing.lineage import readable
from broker.testing.records import (
    Appended,
    Applied,
    Content,
    Final,
    Measured,
    ShardPosition,
    Torn,
    digest_of,
    digest_of_chunks,
)

__all__ = [
    "VALIDATORS",
    "accounted",
    "atomic",
    "bounded",
    "convergent",
    "never_silently_stale",
    "ordered",
    "resumable",
    "unique",
]


def ordered(history: History) -> list[Violation]:
    """Check that offsets have no gaps, and chunks are published in the order of acceptance.

    After the first chunk of a newer incarnation, none of an older one may follow.
    """
    found = []
    for replica, applied in _by_replica(history).items():
        found += [
            Violation(
                f"replica {replica} applied {describe(batch.place)} after {describe(before.place)}",
                batch.at,
            )
            for before, batch in pairwise(applied)
            if batch.loads == before.loads and not _follows(batch, before)
        ]
    appends = _append_numbers(history)
    for shard, head in history.heads.items():
        latest: dict[tuple[str, int], int] = {}
        newest: dict[bytes, int] = {}
        holder: dict[str, int] = {}
        for batch in history.lineage.chain(head):
            for chunk in readable(batch.chunks):
                writer = (chunk.node, chunk.incarnation)
                if chunk.incarnation < holder.get(chunk.node, 0):
                    words = (
                        f"shard {shard}: chunk {chunk.number} of {chunk.node}, incarnation "
                        f"{chunk.incarnation}, is published after one of incarnation "
                        f"{holder[chunk.node]}, which had fenced it"
                    )
                    found.append(Violation(words, batch.at))
                holder[chunk.node] = max(chunk.incarnation, holder.get(chunk.node, 0))
                if chunk.number <= latest.get(writer, 0):
                    words = (
                        f"shard {shard}: chunk {chunk.number} of {chunk.node} is published after "
                        f"its chunk {latest[writer]}"
                    )
                    found.append(Violation(words, batch.at))
                latest[writer] = max(chunk.number, latest.get(writer, 0))
                numbers = appends.get((shard, *writer, chunk.number, batch.place.epoch), ())
                last = newest.get(batch.place.epoch, 0)
                # The first number that is possible in this history.
                fitting = [number for number in numbers if number >= last]
                if numbers and not fitting:
                    words = (
                        f"shard {shard}: append {numbers[-1]} (of {chunk.node}) is published "
                        f"after append {last}"
                    )
                    found.append(Violation(words, batch.at))
                newest[batch.place.epoch] = min(fitting, default=last)
    return found


def _append_numbers(history: History) -> dict[tuple[int, str, int, int, bytes], list[int]]:
    """Return the append numbers of each chunk in ascending order.

    A chunk has several if the server lost it and it was sent again; after further losses the
    history may contain it under any of them.
    """
    found: dict[tuple[int, str, int, int, bytes], list[int]] = defaultdict(list)
    for one in history.of(Appended):
        if not one.duplicate:
            chunk = (one.shard, one.node, one.incarnation, one.number, one.epoch)
            insort(found[chunk], one.append)
    return dict(found)


def unique(history: History) -> list[Violation]:
    """Check that no chunk is in a history twice or with other bytes than its producer sent."""
    found = []
    sent = {
        (accepted.shard, accepted.node, accepted.incarnation, accepted.number): accepted.digest
        for accepted in history.of(Appended)
    }
    for shard, head in history.heads.items():
        places: dict[tuple[int, str, int, int], ShardPosition] = {}
        for batch in history.lineage.chain(head):
            for data, sent_as in zip(batch.chunks, batch.appended, strict=True):
                for chunk in readable((data,)):
                    name = (shard, chunk.node, chunk.incarnation, chunk.number)
                    what = f"shard {shard}: chunk {chunk.number} of {chunk.node}"
                    if name in places:
                        words = (
                            f"{what} is in {describe(places[name])} and in {describe(batch.place)}"
                        )
                        found.append(Violation(words, batch.at))
                    places[name] = batch.place
                    if name in sent and sent[name] != digest_of_chunks((sent_as,)):
                        found.append(Violation(f"{what} has other bytes than were sent", batch.at))
    return found


def atomic(history: History) -> list[Violation]:
    """Check that keys written together become visible together, and batches are applied whole."""
    found = [
        Violation(
            f"replica {torn.replica} showed parts of {torn.group}: {', '.join(torn.values)}",
            torn.at,
        )
        for torn in history.of(Torn)
    ]
    for batch in history.of(Applied):
        logged = history.lineage.batches.get(batch.place)
        if logged is None:
            continue
        if batch.digest != digest_of_chunks(logged.appended) or batch.previous != logged.previous:
            words = f"replica {batch.replica} applied another {describe(batch.place)} than logged"
            found.append(Violation(words, batch.at))
    return found


def resumable(history: History) -> list[Violation]:
    """Check that the content of a replica at a position is the fold of the history up to there."""
    shown: dict[ShardPosition, list[Content]] = defaultdict(list)
    for content in history.of(Content):
        shown[content.place].append(content)
    found = []
    for place, state in history.lineage.states(shown):
        digest = digest_of(state)
        found += [
            Violation(
                f"replica {content.replica} ({content.status}) showed something else than the "
                f"history up to {describe(place)}",
                content.at,
            )
            for content in shown[place]
            if content.digest != digest
        ]
    return found


def convergent(history: History) -> list[Violation]:
    """Check that all replicas and the full state end with the fold of the history at its head."""
    found = []
    finals: dict[int, list[Final]] = defaultdict(list)
    for final in history.of(Final):
        finals[final.place.shard].append(final)
    expected = {
        place.shard: digest_of(state)
        for place, state in history.lineage.states(history.heads.values())
    }
    for shard, held in finals.items():
        if shard not in expected:
            found.append(Violation(f"shard {shard}: the witness did not see the whole history"))
            continue
        found += [
            Violation(
                f"shard {shard}: {final.who} holds something else than the history up to "
                f"{describe(history.heads[shard])}"
            )
            for final in held
            if final.digest != expected[shard]
        ]
        found += [
            Violation(
                f"shard {shard}: {final.who} ended at {describe(final.place)}, the head is "
                f"{describe(history.heads[shard])}"
            )
            for final in held
            if final.place != history.heads[shard]
        ]
    if not history.heads:
        found.append(Violation(f"no final state was recorded by {WITNESS!r}"))
    return found


def bounded(history: History) -> list[Violation]:
    """Check that no value exceeded its limit."""
    worst: dict[str, Measured] = {}
    for measured in history.of(Measured):
        if measured.value > measured.limit and (
            measured.what not in worst or worst[measured.what].value < measured.value
        ):
            worst[measured.what] = measured
    return [
        Violation(
            f"{what} reached {measured.value:g}, the limit is {measured.limit:g}", measured.at
        )
        for what, measured in worst.items()
    ]


VALIDATORS: Mapping[str, Callable[[History], list[Violation]]] = {
    "ordered": ordered,
    "unique": unique,
    "atomic": atomic,
    "resumable": resumable,
    "never_silently_stale": never_silently_stale,
    "convergent": convergent,
    "accounted": accounted,
    "bounded": bounded,
}


def describe(place: ShardPosition) -> str:
    """Return a readable description of a position."""
    return f"batch {place.offset} ({place.id.hex()[:8]}) of epoch {place.epoch.hex()[:8]}"


def _by_replica(history: History) -> dict[str, list[Applied]]:
    found: dict[str, list[Applied]] = defaultdict(list)
    for batch in history.of(Applied):
        found[f"{batch.replica}, shard {batch.place.shard}"].append(batch)
    return found


def _follows(batch: Applied, before: Applied) -> bool:
    place, last = batch.place, before.place
    return (
        place.epoch == last.epoch and place.offset == last.offset + 1 and batch.previous == last.id
    )
