"""Each validator passes a valid history, and finds the fault in a broken one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.testing.history import WITNESS, History
from broker.testing.journal import Journal, Tail, read_journal
from broker.testing.lineage import Lineage
from broker.testing.records import (
    Content,
    Died,
    Final,
    Forgot,
    Headed,
    Measured,
    Record,
    Seen,
    Torn,
    digest_of,
    digest_of_chunks,
)
from broker.testing.validators import VALIDATORS
from tests.unit.valid_history import (
    ACCEPTED,
    APPLIED,
    BATCHES,
    COUNTS,
    FINALS,
    ONE,
    POISON,
    STATES,
    TAKEN,
    THREE,
    TWO,
    appended,
    applied,
    balanced,
    counted,
    fenced,
    heads,
    logged,
    newer,
    place,
    tallied,
    valid,
    without,
)


def test_a_valid_history_has_no_violation() -> None:
    """A history in which every promise was kept passes every validator."""
    found = {name: validate(History(valid())) for name, validate in VALIDATORS.items()}
    assert found == {name: [] for name in VALIDATORS}


SWAPPED = (logged(1, TWO), logged(2, POISON, ONE), logged(3, THREE))
TWICE = (logged(1, ONE), logged(2, POISON, TWO), logged(3, THREE, TWO))
SHORT = (logged(1, ONE), logged(2, POISON, TWO), replace(logged(3), chunks=(), deltas=0))
WRONG = digest_of({"k": 7})
# The older process goes on although it was fenced.
UNFENCED = (logged(1, TAKEN), logged(2, POISON, TWO), logged(3, THREE))

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
    (
        "ordered",
        "an older process of a node name after a newer one",
        "which had fenced it",
        [*without(*BATCHES), *UNFENCED],
    ),
    ("unique", "a chunk twice", "is in batch 2", [*without(*BATCHES), *TWICE]),
    (
        "unique",
        "bytes changed on the way",
        "other bytes",
        [*without(ACCEPTED[0]), appended(1, ONE, digest=b"")],
    ),
    ("atomic", "a torn group", "showed parts of", [*valid(), Torn(1.0, "r", "g", ("1", "2"))]),
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
        [*valid(), Content(20.0, "r", "live", place(2), WRONG)],
    ),
    (
        "never_silently_stale",
        "live without the last batch",
        "did not hold batch 3",
        [*valid(), Seen(35.0, "r", "live", 0.1, (place(2),))],
    ),
    (
        "never_silently_stale",
        "live on a history that was given up",
        "did not hold batch 3",
        [
            *valid(),
            logged(3, THREE, line="b"),
            Seen(35.0, "r", "live", 0.1, (place(3, "b"),)),
        ],
    ),
    (
        "never_silently_stale",
        "live with a lag beyond the bound",
        "lag of 9.00",
        [*valid(), Seen(35.0, "r", "live", 9.0, (place(3),))],
    ),
    (
        "never_silently_stale",
        "live with a lag just beyond the bound",
        "lag of 3.06",
        [*valid(), Seen(35.0, "r", "live", 3.06, (place(3),))],
    ),
    (
        "convergent",
        "a replica that holds something else",
        "q holds something else",
        [*valid(), Final(41.0, "q", place(3), WRONG)],
    ),
    (
        "convergent",
        "a replica that stopped before the head",
        "q ended at batch 2",
        [*valid(), Final(41.0, "q", place(2), digest_of(STATES[3]))],
    ),
    (
        "convergent",
        "a history that was not seen to its beginning",
        "did not see the whole",
        without(BATCHES[0]),
    ),
    ("convergent", "no final state", "no final state was recorded", without(*FINALS)),
    ("accounted", "deltas that went nowhere", "is not accepted", [*valid(), counted(pending=1)]),
    (
        "accounted",
        "a loss counted and not reported",
        "reported 0 deltas lost; 1",
        [*without(*BATCHES, counted()), *SHORT, counted(lost=1, reported=0)],
    ),
    (
        "accounted",
        "a loss reported twice",
        "reported 2 deltas lost; 1",
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
        "a call that left no trace",
        "calls gave it 6 deltas",
        [*without(counted()), counted(called=6)],
    ),
    (
        "accounted",
        "a shard that lost count of what it published",
        "its batches hold 8",
        [*valid(), balanced(2, published=7, accepted=8)],
    ),
    (
        "accounted",
        "a shard whose queue is short",
        "pending 0 in the queue",
        [*valid(), balanced(2, in_queue=0)],
    ),
    (
        "accounted",
        "a replica whose own counters miss deltas",
        "went through 3 batches of 9 deltas",
        [*without(tallied()), tallied(deltas_applied=4)],
    ),
    (
        "accounted",
        "a replica whose own counters miss a batch",
        "counts 2 with",
        [*without(tallied()), tallied(batches_applied=2)],
    ),
    (
        "accounted",
        "a chunk that its producer never got accepted",
        "never heard",
        without(ACCEPTED[2]),
    ),
    (
        "accounted",
        "chunks of a dead producer that were more than in flight",
        "never heard",
        [*without(ACCEPTED[1], ACCEPTED[2], counted()), Died(41.0, "n")],
    ),
    (
        "accounted",
        "a fencing that does not say who is meant",
        "unclear error",
        [*without(counted()), newer(1, ONE), fenced("go away"), Died(41.0, "n")],
    ),
    (
        "accounted",
        "a fencing without another process",
        "no process took its name",
        [*without(counted()), fenced()],
    ),
    (
        "accounted",
        "a replica that lost count",
        "deltas are not",
        [*without(APPLIED[0]), applied(BATCHES[0], applied=1)],
    ),
    ("bounded", "a log beyond its limit", "log reached 11", [*valid(), Measured(2, "log", 11, 10)]),
]


@pytest.mark.parametrize(
    ("validator", "words", "records"),
    [pytest.param(v, words, records, id=f"{v}: {how}") for v, how, words, records in BROKEN],
)
def test_broken_history_is_found(validator: str, words: str, records: list[Record]) -> None:
    """A history broken on purpose fails the validator of its promise, with the reason."""
    found = VALIDATORS[validator](History(records))
    assert any(words in violation.words for violation in found)


def test_what_needs_a_dictionary_is_compared_as_it_was_sent(tmp_path: Path) -> None:
    """The witness writes such a chunk without compression, and beside it what it really was."""
    sent = b"compressed"
    batch = replace(BATCHES[0], originals=(sent,))
    received = applied(batch, digest=digest_of_chunks((sent,)))
    accepted = appended(1, ONE, digest=digest_of_chunks((sent,)))
    whole = without(BATCHES[0], APPLIED[0], ACCEPTED[0])
    with Journal(tmp_path / "one") as journal:
        journal.write(batch)
    assert [*read_journal(tmp_path / "one")] == [batch]
    for records, words in (
        ([batch, received, accepted, *whole], None),
        ([BATCHES[0], received, accepted, *whole], "other bytes"),
        ([batch, applied(BATCHES[0]), accepted, *whole], "applied another"),
    ):
        found = [one.words for check in VALIDATORS.values() for one in check(History(records))]
        assert any(words in text for text in found) if words else not found


def test_every_validator_was_seen_to_fail() -> None:
    """No validator is without a history that it finds broken."""
    assert {validator for validator, *_ in BROKEN} == set(VALIDATORS)


def test_fencing_is_no_violation() -> None:
    """Of two processes with one node name all is kept that either got accepted."""
    taken = logged(4, TAKEN)
    records = [*without(*heads(), *FINALS, counted()), fenced(), taken, newer(1, TAKEN, append=4)]
    records += [Final(41.0, WITNESS, taken.place, digest_of({"k": 9, "t": "x"}))]
    found = {name: validate(History(records)) for name, validate in VALIDATORS.items()}
    assert found == {name: [] for name in VALIDATORS}


def test_chunk_accepted_again_may_be_in_the_history_of_either_time() -> None:
    """A server that went back twice may hold it where it was first; only one of them has to fit."""
    again = [*valid(), appended(1, ONE, append=9)]
    assert VALIDATORS["ordered"](History(again)) == []
    never = [*without(ACCEPTED[0]), appended(1, ONE, append=8), appended(1, ONE, append=9)]
    assert VALIDATORS["ordered"](History(never))


def test_one_chunk_in_flight_at_a_death_is_nobodys_fault() -> None:
    """A chunk may have been accepted just before, without a reply."""
    records = [*without(ACCEPTED[2], counted()), Died(41.0, "n")]
    assert VALIDATORS["accounted"](History(records)) == []


def test_violations_say_when() -> None:
    """A violation at a moment has its time, so that a fault can be found for it."""
    late = Seen(35.0, "r", "live", 9.0, (place(3),))
    (found,) = VALIDATORS["never_silently_stale"](History([*valid(), late]))
    assert found.at == late.at


def test_loss_after_a_death_is_nobodys_fault() -> None:
    """What the server forgot after its producer died cannot be sent again: no violation."""
    records = [*without(*COUNTS, *BATCHES, *APPLIED, counted()), *SHORT]
    records += [Died(35.0, "n"), Forgot(36.0, "flush")]
    assert VALIDATORS["accounted"](History(records)) == []


def test_loss_that_was_reported_is_no_violation() -> None:
    """A live producer that reported exactly what was lost keeps the promise."""
    records = [*without(*COUNTS, *BATCHES, *APPLIED, counted()), *SHORT, counted(lost=1)]
    records.append(Forgot(39.5, "crash"))
    assert VALIDATORS["accounted"](History(records)) == []


def test_rollback_excuses_a_head_that_was_lost() -> None:
    """While the server goes back, the head seen before it proves nothing about a replica."""
    back = [Headed(34.2, 34.3, place(2))]
    records = [*valid(), *back, Seen(34.5, "r", "live", 0.6, (place(2),))]
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
    records = [*valid(), Torn(1.0, "r", "g", ("a",)), Died(1.0, "n"), Forgot(1.0, "why"), fenced()]
    with Journal(path) as journal:
        for record in records:
            journal.write(record)
    assert list(read_journal(path)) == records
    path.write_bytes(path.read_bytes()[:-1])
    assert list(read_journal(path)) == records[:-1]


def test_a_journal_that_grows_is_read_on(tmp_path: Path) -> None:
    """Each look gives what is new, and a record that is only half there when it is whole."""
    path = tmp_path / "journal"
    first, second = Died(1.0, "n"), Forgot(2.0, "why")
    with Journal(path) as journal:
        journal.write(first)
        tail = Tail(path)
        assert list(tail.new()) == [first]
        assert list(tail.new()) == []
        journal.write(second)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    assert list(tail.new()) == []
    path.write_bytes(data)
    assert list(tail.new()) == [second]


@pytest.mark.parametrize("is_recorded", [True, False])
def test_batches_that_a_lost_server_took_with_it_are_known_from_who_applied_them(
    is_recorded: bool,  # noqa: FBT001
) -> None:
    """A replica ahead of the witness holds what its batches follow, not more."""
    lost = logged(2, ONE, line="lost")
    anew = logged(2, TWO, line="b")
    records = [
        BATCHES[0],
        anew,
        Headed(10.0, 10.01, place(1)),
        Headed(20.0, 20.01, anew.place),
        *([applied(lost, at=10.1)] if is_recorded else []),
        Seen(10.2, "r", "live", 0.1, (lost.place,)),
    ]
    history = History(records)
    assert bool(VALIDATORS["never_silently_stale"](history)) is not is_recorded
    assert history.lineage.contains(lost.place, place(1)) is is_recorded
    assert not history.lineage.contains(lost.place, anew.place)
    assert history.lineage.contains(anew.place, place(1))
    # Nobody knows what it held.
    assert dict(history.lineage.states([lost.place, anew.place])).keys() == {anew.place}
