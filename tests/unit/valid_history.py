"""A small valid history, record by record, to be broken on purpose."""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.codec import encode_chunk
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Chunk, Run
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.testing.history import WITNESS
from broker.testing.records import (
    Appended,
    Applied,
    Balanced,
    Content,
    Counted,
    Fenced,
    Final,
    Headed,
    Logged,
    Measured,
    Record,
    Seen,
    ShardPosition,
    Tallied,
    digest_of,
    digest_of_chunks,
)

EPOCH = b"E" * 8
INCARNATION = 7
POISON = b"no chunk"


def place(offset: int, line: str = "a") -> ShardPosition:
    """A position; another line is another history."""
    return ShardPosition(0, EPOCH, offset, f"{line}{offset:07}".encode() if offset else NO_ID)


def chunk(number: int, *runs: Run, node: str = "n", incarnation: int = INCARNATION) -> bytes:
    """A chunk as a producer packs it."""
    return encode_chunk(Chunk(node, incarnation, number, 0, list(runs)))


ONE = chunk(1, Run(OP_SET, ["k", "gone"], [1, 2]))
TWO = chunk(2, Run(OP_INCREMENT, ["k"], [5]), Run(OP_DELETE, ["gone"], None))
THREE = chunk(3, Run(OP_SET, ["t"], ["x"]))
# By another process that took the node name.
TAKEN = chunk(1, Run(OP_SET, ["k"], [9]), incarnation=INCARNATION + 1)
DELTAS = {ONE: 2, TWO: 2, THREE: 1, POISON: 4, TAKEN: 1}
STATES = ({}, {"k": 1, "gone": 2}, {"k": 6}, {"k": 6, "t": "x"})


def logged(
    offset: int, *chunks: bytes, line: str = "a", before: ShardPosition | None = None
) -> Logged:
    """A batch in the log, 10 s after the one before."""
    previous = (before or place(offset - 1)).id
    deltas = sum(DELTAS[data] for data in chunks)
    return Logged(offset * 10.0, place(offset, line), previous, deltas, chunks)


BATCHES = (logged(1, ONE), logged(2, POISON, TWO), logged(3, THREE))


def applied(batch: Logged, replica: str = "r", **changes: object) -> Applied:
    """A replica's record of a batch."""
    skipped = sum(DELTAS[data] for data in batch.chunks if data == POISON)
    record = Applied(
        at=batch.at,
        replica=replica,
        place=batch.place,
        previous=batch.previous,
        loading=False,
        loads=1,
        digest=digest_of_chunks(batch.chunks),
        deltas=batch.deltas,
        applied=batch.deltas - skipped,
        superseded=0,
        refused=0,
        skipped=skipped,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def appended(number: int, data: bytes, **changes: object) -> Appended:
    """A producer's record of a chunk."""
    record = Appended(
        at=number * 10.0 - 1,
        node="n",
        incarnation=INCARNATION,
        shard=0,
        number=number,
        deltas=DELTAS[data],
        digest=digest_of_chunks((data,)),
        append=number,
        epoch=EPOCH,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def counted(**changes: int) -> Counted:
    """The last counters of the producer."""
    counters = {"buffered": 5, "accepted": 5, "conflated": 0, "pending": 0, "lost": 0}
    reported = changes.pop("reported", changes.get("lost", 0))
    called = changes.pop("called", 5)
    return Counted(
        *(40.0, "n", (INCARNATION,), counters | changes, reported, 10.0), final=True, called=called
    )


def tallied(**changes: int) -> Tallied:
    """The last counters of the replica."""
    counters = {"batches_applied": 3, "deltas_applied": 5, "deltas_superseded": 0}
    return Tallied(40.0, "r", counters | {"deltas_refused": 0, "deltas_skipped": 4} | changes)


def balanced(offset: int, **changes: int) -> Balanced:
    """What Redis counts at a batch, with the next one pending."""
    published = sum(batch.deltas for batch in BATCHES[:offset])
    accepted = sum(batch.deltas for batch in BATCHES[: offset + 1])
    waits = accepted - published
    return replace(
        Balanced(40.0, place(offset), accepted, published, waits),
        **changes,  # type: ignore[arg-type]
    )


def fenced(message: str = "another process took the node name 'n'") -> Fenced:
    """The producer learns that another one holds its name."""
    return Fenced(39.0, "n", (INCARNATION,), message)


def newer(number: int, data: bytes, **changes: object) -> Appended:
    """A chunk that a later holder of the node name got accepted."""
    return appended(number, data, incarnation=INCARNATION + 1, **changes)


def heads() -> list[Headed]:
    """The head, looked at every second."""
    return [
        Headed(float(at), at + 0.01, place(min(3, at // 10))) for at in range(45) if at // 10 != 0
    ]


SEEN = [Seen(at + 0.5, "r", "live", 0.4, (place(min(3, at // 10)),)) for at in range(11, 41)]
CONTENTS = [
    Content(n * 10.0, "r", "live", place(n), digest_of(state)) for n, state in enumerate(STATES)
]
FINALS = [
    Final(41.0, who, place(3), digest_of(STATES[3])) for who in (WITNESS, "full-state hash", "r")
]
ACCEPTED = [appended(1, ONE), appended(2, TWO), appended(3, THREE)]
APPLIED = [applied(batch) for batch in BATCHES]


def valid() -> list[Record]:
    """A history in which every promise is kept."""
    return [
        *ACCEPTED,
        *BATCHES,
        *heads(),
        *APPLIED,
        *SEEN,
        *CONTENTS,
        *FINALS,
        counted(),
        tallied(),
        *[balanced(offset) for offset in range(4)],
        Measured(1.0, "log", 10, 10),
    ]


# Counters that a shorter history would contradict.
COUNTS = (tallied(), *[balanced(offset) for offset in range(4)])


def without(*records: Record) -> list[Record]:
    """The valid history less these records."""
    return [record for record in valid() if record not in records]
