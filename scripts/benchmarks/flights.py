"""One day of the flights that the demo replays, and the state before and after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from scripts.benchmarks.pace import paced_at
from scripts.benchmarks.processes import ROOT
from scripts.flights.events import Movement, movements_of
from scripts.flights.records import MINUTES_A_DAY, read_flights

FILE = ROOT / "scripts" / "flights" / "data" / "flights-2013-01.csv.gz"
DAYS_BEFORE = 9


@lru_cache(maxsize=1)
def day(file: Path = FILE) -> tuple[list[Movement], list[Movement]]:
    """Return the movements before the tenth day of the file, and those of that day."""
    movements = movements_of(read_flights(file))
    begin = (movements[0].minute // MINUTES_A_DAY + DAYS_BEFORE) * MINUTES_A_DAY
    before = [one for one in movements if one.minute < begin]
    during = [one for one in movements if begin <= one.minute < begin + MINUTES_A_DAY]
    return before, during


def replayed(movements: list[Movement], seconds: float) -> Iterator[Movement]:
    """Yield a day's movements, each at its time; the day takes `seconds`."""
    return paced_at(timed(movements, seconds))


def timed(movements: list[Movement], seconds: float) -> Iterator[tuple[float, Movement]]:
    """Yield a day's movements, each with the second at which it is due."""
    begin = movements[0].minute // MINUTES_A_DAY * MINUTES_A_DAY
    for movement in movements:
        yield (movement.minute - begin) * seconds / MINUTES_A_DAY, movement


def fold(state: MutableMapping[str, Any], movements: Iterable[Movement]) -> None:
    """Apply movements to a plain dict."""
    for movement in movements:
        apply(state, changes_of(movement))


def changes_of(movement: Movement) -> list[tuple[int, str, Any]]:
    """Return a movement as (operation, key, value or amount): 0 set, 1 increment, 2 delete."""
    return [
        *((0, key, value) for key, value in movement.sets.items()),
        *((1, key, amount) for key, amount in movement.increments),
        *((2, key, None) for key in movement.deletes),
    ]


def apply(state: MutableMapping[str, Any], changes: Iterable[tuple[int, str, Any]]) -> None:
    """Apply changes to a plain dict."""
    for what, key, value in changes:
        match what:
            case 0:
                state[key] = value
            case 1:
                state[key] = state.get(key, 0) + value
            case _:
                state.pop(key, None)
