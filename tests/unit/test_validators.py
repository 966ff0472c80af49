"""Each validator passes a sound history, and finds one that was broken on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.codec import encode_chunk
from broker.faults.history import WITNESS, History
from broker.faults.journal import Journal, read_journal
from broker.faults.lineage import Lineage
from broker.faults.records import (
    Appended,
    Applied,
    Content,
    Counted,
    Died,
    Final,
    Forgot,
    Headed,
    Logged,
    Measured,
    Place,
    Record,
    Seen,
    Torn,
    digest_of,
    digest_of_chunks,
)
from broker.faults.validators import VALIDATORS
from broker.model import Chunk, Run
from broker.protocol import NO_ID, OP_DELETE, OP_INCREMENT, OP_SET

EPOCH = b"E" * 8
INCARNATION = 7
POISON = b"no chunk"


def place(offset: int, line: str = "a") -> Place:
    """A position; another line is another history."""
    return Place(0, EPOCH, offset, f"{line}{offset:07}".encode() if offset else NO_ID)


def chunk(number: int, *runs: Run, node: str = "n") -> bytes:
    """A chunk as a producer packs it."""
    return encode_chunk(Chunk(node, INCARNATION, number, 0, list(runs)))


ONE = chunk(1, Run(OP_SET, ["k", "gone"], [1, 2]))
TWO = chunk(2, Run(OP_INCREMENT, ["k"], [5]), Run(OP_DELETE, ["gone"], None))
THREE = chunk(3, Run(OP_SET, ["t"], ["x"]))
DELTAS = {ONE: 2, TWO: 2, THREE: 1, POISON: 4}
STATES = ({}, {"k": 1, "gone": 2}, {"k": 6}, {"k": 6, "t": "x"})


def logged(offset: int, *chunks: bytes, line: str = "a", before: Place | None = None) -> Logged:
    """A batch in the log, 10 s after the one before."""
    previous = (before or place(offset - 1)).id
    deltas = sum(DELTAS[data] for data in chunks)
    return Logged(offset * 10.0, place(offset, line), previous, deltas, chunks)


BATCHES = (logged(1, ONE), logged(2, POISON, TWO), logged(3, THREE))


def applied(batch: Logged, replica: str = "r", **changes: object) -> Applied:
    """What a replica records of a batch."""
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
    """What a producer records of a chunk."""
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
    return Counted(40.0, "n", (INCARNATION,), counters | changes, reported, 10.0, final=True)


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


def sound() -> list[Record]:
    """A history in which every promise was kept."""
    return [
        *ACCEPTED,
        *BATCHES,
        *heads(),
        *APPLIED,
        *SEEN,
        *CONTENTS,
        *FINALS,
        counted(),
        Measured(1.0, "log", 10, 10),
    ]


def without(*records: Record) -> list[Record]:
    """The sound history less these records."""
    return [record for record in sound() if record not in records]


def test_sound_history_has_no_violation() -> None:
    """A history in which every promise was kept passes every validator."""
    found = {name: validate(History(sound())) for name, validate in VALIDATORS.items()}
    assert found == {name: [] for name in VALIDATORS}


SWAPPED = (logged(1, TWO), logged(2, POISON, ONE), logged(3, THREE))
TWICE = (logged(1, ONE), logged(2, POISON, TWO), logged(3, THREE, TWO))
SHORT = (logged(1, ONE), logged(2, POISON, TWO), replace(logged(3), chunks=(), deltas=0))
WRONG = digest_of({"k": 7})

BROKEN: list[tuple[str, str, str, list[Record]]] = [
    ("ordered", "a batch left out", "after batch 1", without(APPLIED[1])),
    (
        "ordered",
        "the wrong predecessor",
        "applied batch 3",
        [*without(APPLIED[2]), applied(BATCHES[2], previous=b"x" * 8)],
    ),
    ("ordered", "chunks swapped", "published after its chunk", [*without(*BATCHES), *SWAPPED]),
    (
        "ordered",
        "published in another order than accepted",
        "published after append 9",
        [*without(ACCEPTED[0]), appended(1, ONE, append=9)],
    ),
    ("unique", "a chunk twice", "is in batch 2", [*without(*BATCHES), *TWICE]),
    (
        "unique",
        "bytes changed on the way",
        "other bytes",
        [*without(ACCEPTED[0]), appended(1, ONE, digest=b"")],
    ),
    ("atomic", "a torn group", "showed parts of", [*sound(), Torn(1.0, "r", "g", ("1", "2"))]),
    (
        "atomic",
        "half a batch",
        "applied another",
        [*without(APPLIED[1]), applied(BATCHES[1], digest=digest_of_chunks((TWO,)))],
    ),
    (
        "resumable",
        "other content than the history",
        "showed something else",
        [*sound(), Content(20.0, "r", "live", place(2), WRONG)],
    ),
    (
        "never_silently_stale",
        "live without the last batch",
        "did not hold batch 3",
        [*sound(), Seen(35.0, "r", "live", 0.1, (place(2),))],
    ),
    (
        "never_silently_stale",
        "live on a history that was given up",
        "did not hold batch 3",
        [
            *sound(),
            logged(3, THREE, line="b"),
            Seen(35.0, "r", "live", 0.1, (place(3, "b"),)),
        ],
    ),
    (
        "never_silently_stale",
        "live with a lag beyond the bound",
        "lag of 9.00",
        [*sound(), Seen(35.0, "r", "live", 9.0, (place(3),))],
    ),
    (
        "convergent",
        "a replica that holds something else",
        "q holds something else",
        [*sound(), Final(41.0, "q", place(3), WRONG)],
    ),
    (
        "convergent",
        "a replica that stopped before the head",
        "q ended at batch 2",
        [*sound(), Final(41.0, "q", place(2), digest_of(STATES[3]))],
    ),
    (
        "convergent",
        "a history that was not seen to its beginning",
        "did not see the whole",
        without(BATCHES[0]),
    ),
    ("convergent", "no final state", "nobody told", without(*FINALS)),
    ("accounted", "deltas that went nowhere", "is not accepted", [*sound(), counted(pending=1)]),
    (
        "accounted",
        "a loss counted and not told",
        "told 0 deltas lost; 1",
        [*without(*BATCHES, counted()), *SHORT, counted(lost=1, reported=0)],
    ),
    (
        "accounted",
        "a loss told twice",
        "told 2 deltas lost; 1",
        [*without(*BATCHES, counted()), *SHORT, counted(lost=2)],
    ),
    (
        "accounted",
        "an accepted chunk that vanished",
        "counts 0 deltas lost; 1",
        [*without(*BATCHES), *SHORT],
    ),
    (
        "accounted",
        "a loss of what was kept",
        "could have been sent again",
        [*without(*BATCHES, counted()), *SHORT, Forgot(29.5, "crash"), counted(lost=1)],
    ),
    (
        "accounted",
        "a dead producer's chunk that vanished though nothing was forgotten",
        "the server forgot nothing",
        [*without(*BATCHES, counted()), *SHORT, Died(35.0, "n")],
    ),
    (
        "accounted",
        "a replica that lost count",
        "deltas are not",
        [*without(APPLIED[0]), applied(BATCHES[0], applied=1)],
    ),
    ("bounded", "a log beyond its limit", "log reached 11", [*sound(), Measured(2, "log", 11, 10)]),
]


@pytest.mark.parametrize(
    ("validator", "words", "records"),
    [pytest.param(v, words, records, id=f"{v}: {how}") for v, how, words, records in BROKEN],
)
def test_broken_history_is_found(validator: str, words: str, records: list[Record]) -> None:
    """A history broken on purpose fails the validator of its promise, in words that tell why."""
    assert any(words in violation for violation in VALIDATORS[validator](History(records)))


def test_every_validator_was_seen_to_fail() -> None:
    """No validator is without a history that it finds broken."""
    assert {validator for validator, *_ in BROKEN} == set(VALIDATORS)


def test_loss_after_a_death_is_nobodys_fault() -> None:
    """What the server forgot after its producer died cannot be sent again: no violation."""
    records = [*without(*BATCHES, *APPLIED, counted()), *SHORT]
    records += [Died(35.0, "n"), Forgot(36.0, "flush")]
    assert VALIDATORS["accounted"](History(records)) == []


def test_loss_that_was_told_is_none() -> None:
    """A live producer that told exactly what is gone keeps the promise."""
    records = [*without(*BATCHES, *APPLIED, counted()), *SHORT, counted(lost=1)]
    records.append(Forgot(39.5, "crash"))
    assert VALIDATORS["accounted"](History(records)) == []


def test_rollback_excuses_what_nobody_could_know() -> None:
    """While the server goes back, the head seen before it proves nothing about a replica."""
    back = [Headed(34.2, 34.3, place(2))]
    records = [*sound(), *back, Seen(34.5, "r", "live", 0.6, (place(2),))]
    records.sort(key=lambda record: record.at)
    assert VALIDATORS["never_silently_stale"](History(records)) == []


def test_lineage_tells_forks_apart() -> None:
    """Of two histories that share a beginning, neither contains the other's end."""
    fork = logged(3, THREE, line="b")
    end = logged(4, line="b", before=fork.place)
    lineage = Lineage([*BATCHES, fork, end])
    assert lineage.contains(end.place, place(2))
    assert lineage.contains(end.place, fork.place)
    assert not lineage.contains(end.place, place(3))
    assert not lineage.contains(place(3), fork.place)


def test_lineage_folds_each_fork() -> None:
    """The content at a position is that of its own line only."""
    fork = logged(2, THREE, line="b")
    states = {
        at: dict(state)
        for at, state in Lineage([*BATCHES, fork]).states([place(3), fork.place, place(0)])
    }
    assert states == {
        place(3): STATES[3],
        fork.place: {"k": 1, "gone": 2, "t": "x"},
        place(0): {},
    }


def test_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    """Every kind of record survives the file, and a record cut short by a kill is left out."""
    path = tmp_path / "journal"
    records = [*sound(), Torn(1.0, "r", "g", ("a",)), Died(1.0, "n"), Forgot(1.0, "why")]
    with Journal(path) as journal:
        for record in records:
            journal.write(record)
    assert list(read_journal(path)) == records
    path.write_bytes(path.read_bytes()[:-1])
    assert list(read_journal(path)) == records[:-1]
