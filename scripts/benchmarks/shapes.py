"""Values of the shapes that people write, their updates, and the state that results; no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from scripts.benchmarks.link import RoleConfig
from scripts.benchmarks.workload import STRIDE, key_of

# Different values of each key. Values are made before the clock runs, so a writer that writes for
# some seconds begins again with the first; a prime number, so that no batch has the same ones.
PASSES = 7
# Updates between two looks at the clock.
PAGE = 1_000


@dataclass(frozen=True)
class Shape:
    """One kind of value.

    Attributes:
        name: of a row.
        title: in the page.
        value: number of an update -> its value, different for each number.
    """

    name: str
    title: str
    value: Callable[[int], Any]


FLOAT = "float"
SHAPES = (
    Shape(FLOAT, "a float", lambda number: number / 7),
    Shape(
        "position",
        '`{"lat": .., "lon": ..}`',
        lambda number: {"lat": 52.5 + number * 1e-6, "lon": 13.4 - number * 1e-6},
    ),
    Shape(
        "record",
        "a dict of six fields, one a list of three",
        lambda number: {
            "lat": 52.5 + number * 1e-6,
            "lon": 13.4,
            "speed": number % 80,
            "line": "M41",
            "stops": [number % 7, 2, 3],
            "ok": True,
        },
    ),
    Shape("text", "a text of 100 characters", lambda number: f"{number:010d}" * 10),
)
NAMES = tuple(shape.name for shape in SHAPES)
_BY_NAME = {shape.name: shape for shape in SHAPES}


def shape_of(name: str) -> Shape:
    """Return the shape of this name."""
    return _BY_NAME[name]


class Updates:
    """The updates that a writer writes: each key in turn, with one of its values after the other.

    Keys and values are made at once, before the clock runs.

    Args:
        shape: of the values.
        keys: how many different ones.

    Attributes:
        written: number of updates that were handed out.
    """

    def __init__(self, shape: str, keys: int) -> None:
        self._keys = [key_of(number * STRIDE % keys) for number in range(keys)]
        value = shape_of(shape).value
        self._values = [value(number) for number in range(keys * PASSES)]
        self.written = 0

    @classmethod
    def of(cls, config: RoleConfig) -> Updates:
        """Return those of a role, whose details name the `shape`."""
        return cls(config.details["shape"], config.keys)

    @property
    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Every key with every one of its values."""
        return zip(cycle(self._keys), self._values, strict=False)

    def pages(self, config: RoleConfig) -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield pages of key and value, for the time or the number that a role is given.

        Args:
            config: the detail `seconds` is the time from now; if it is 0 or absent, `updates` is
                the number.
        """
        seconds = config.details.get("seconds", 0)
        end = time.monotonic() + seconds
        keys = len(self._keys)
        for begin in cycle(range(0, len(self._values), keys)):
            for first in range(0, keys, PAGE):
                last = min(first + PAGE, keys)
                if seconds:
                    if time.monotonic() >= end:
                        return
                else:
                    last = min(last, first + config.updates - self.written)
                    if last <= first:
                        return
                self.written += last - first
                yield zip(
                    self._keys[first:last], self._values[begin + first : begin + last], strict=True
                )


def final(shape: str, keys: int, written: int) -> dict[str, Any]:
    """Return key -> last value after so many updates."""
    value = shape_of(shape).value
    last = range(max(0, written - keys), written)
    return {
        key_of(number % keys * STRIDE % keys): value(number % (keys * PASSES)) for number in last
    }
