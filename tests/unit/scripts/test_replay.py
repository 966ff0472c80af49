from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.flights.events import Movement, movements_of
from scripts.flights.oracle import final_state
from scripts.flights.records import DATA, read_flights
from scripts.flights.replay import remaining
from scripts.flights.watch import Plan


def written(state: dict[str, object], movements: Sequence[Movement]) -> dict[str, object]:
    """Apply movements to a copy of a state."""
    state = dict(state)
    for movement in movements:
        state.update(movement.sets)
        for key, amount in movement.increments:
            state[key] = int(str(state.get(key, 0))) + amount
        for key in movement.deletes:
            state.pop(key, None)
    return state


counts = st.lists(st.tuples(st.sampled_from("ab"), st.integers(-2, 2)), max_size=3)


@given(st.lists(counts, max_size=8), st.data())
def test_started_again_a_replay_counts_every_increment_once(
    amounts: list[list[tuple[str, int]]], data: st.DataObject
) -> None:
    """The sums are right for any number of increments that Redis accepted after the mark.

    The counters may be in different shards, so one may be further than the other.
    """
    movements = [Movement(0, "EWR", increments=tuple(some)) for some in amounts]
    done = data.draw(st.integers(0, len(movements)))
    held: dict[str, object] = {}
    for key in "ab":
        before = [n for m in movements[:done] for k, n in m.increments if k == key]
        later = [n for m in movements[done:] for k, n in m.increments if k == key]
        beginnings = [*accumulate(later, initial=sum(before))]
        held[key] = data.draw(st.sampled_from(beginnings))
    left, lost = remaining(movements, done, held)
    assert not lost
    ended, expected = written(held, left), written({}, movements)
    assert {key: ended.get(key, 0) for key in "ab"} == {key: expected.get(key, 0) for key in "ab"}


def test_a_counter_that_was_lost_is_reported() -> None:
    """If the mark counts more than the counter holds, the difference is reported as lost."""
    movements = [Movement(0, "EWR", increments=(("a", 5), ("b", 1))) for _ in range(3)]
    left, lost = remaining(movements, 2, {"a": 5, "b": 2})
    assert lost == {"a"}
    assert [movement.increments for movement in left] == [(("a", 5), ("b", 1))]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_the_real_month_goes_on_where_it_was(share: float) -> None:
    """A movement further than the mark, what is left leads to the file's answer."""
    flights = read_flights(DATA)
    movements = movements_of(flights)
    done = int(len(movements) * share)
    held = written({}, movements[: done + 1])
    left, lost = remaining(movements, done, held)
    assert not lost
    assert written(held, left) == final_state(flights)


@pytest.mark.slow
def test_the_board_knows_how_far_a_node_is() -> None:
    """From the mark alone: at the beginning, on the way, and at the end."""
    plan = Plan(DATA)
    assert plan.flights == 27_004
    node = plan.of["EWR"]
    total = len(node.minutes)
    assert (node.at(0).deltas, node.at(0).done) == (0, 0)
    assert 0 < node.at(100).deltas < node.at(101).deltas
    assert node.at(total).deltas == node.at(total).planned_deltas
    assert plan.first <= node.at(total).minute <= plan.last
