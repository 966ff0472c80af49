"""Reads and checks a file of flights: one `Flight` per row, or an error that names the line.

Times are minutes on one clock, that of the three airports (New York's), counted from 1 January of
the year 1.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Literal

DATA = Path(__file__).parent / "data" / "flights-2013-01.csv.gz"
"""The month that the demo replays by default."""
NODES = ("EWR", "JFK", "LGA")
COLUMNS = (
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
)
MISSING = ("", "NA")
MINUTES_AN_HOUR = 60
MINUTES_A_DAY = 24 * MINUTES_AN_HOUR
ANNOUNCED_AHEAD = 3 * 60
"""Minutes before its scheduled departure at which a flight appears in the state."""
MIN_TAXI = 5
"""Minutes that an aircraft taxis in all, at least."""
LONGEST_DELAY = 7 * MINUTES_A_DAY
GZIP_MAGIC = b"\x1f\x8b"

Outcome = Literal["arrived", "cancelled", "diverted"]


class InputError(ValueError):
    """The file of flights cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """One row, with all times on one clock (minutes)."""

    key: str
    name: str
    carrier: str
    origin: str
    destination: str
    aircraft: str | None
    scheduled: int
    announced: int
    departed: int | None
    ended: int
    outcome: Outcome
    departure_delay: int | None
    arrival_delay: int | None


def read_flights(path: Path) -> list[Flight]:
    """Return the flights of a file in its own order; an empty list when it holds a header only.

    Args:
        path: a CSV file with the columns `COLUMNS` (others are ignored), plain or gzip.

    Raises:
        InputError: the file cannot be read, a column is missing, or a value cannot be right; the
            message names line, column and value.
    """
    taken: dict[str, int] = {}
    flights = []
    for row in rows_of(path):
        base = key_of(row)
        number = taken[base] = taken.get(base, 0) + 1
        flights.append(flight_of(row, base if number == 1 else f"{base}/{number}"))
    return flights


@lru_cache(maxsize=100_000)
def clock_text(minute: int) -> str:
    """Return a minute as `2013-01-31 05:17`."""
    days, minutes = divmod(minute, MINUTES_A_DAY)
    hours, minutes = divmod(minutes, MINUTES_AN_HOUR)
    return f"{date.fromordinal(days + 1)} {hours:02}:{minutes:02}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file; values are checked when they are read."""

    path: Path
    line: int
    values: dict[str, str]

    def fault(self, column: str, reason: str) -> InputError:
        """Return an error that names file, line, column and value."""
        value = self.values[column]
        return InputError(f"{self.path}, line {self.line}, column {column}: {value!r} {reason}")

    def text(self, column: str) -> str:
        """Return a value that must not be missing."""
        value = self.values[column]
        if value in MISSING:
            raise self.fault(column, "is missing")
        return value

    def has(self, column: str) -> bool:
        """Return whether the column has a value."""
        return self.values[column] not in MISSING

    def number(self, column: str, lowest: int, highest: int) -> int:
        """Return a whole number within bounds, both included."""
        text = self.text(column)
        try:
            value = int(text.removesuffix(".0"))
        except ValueError:
            raise self.fault(column, "is not a whole number") from None
        if not lowest <= value <= highest:
            raise self.fault(column, f"is not within {lowest} and {highest}")
        return value

    def clock(self, column: str) -> int:
        """Return a clock time hhmm as minutes after midnight; 2400 is the end of the day."""
        hours, minutes = divmod(self.number(column, 0, 2400), 100)
        if minutes >= MINUTES_AN_HOUR:
            raise self.fault(column, "is not a clock time hhmm")
        return hours * MINUTES_AN_HOUR + minutes

    def day(self) -> date:
        """Return the date of the row."""
        year, month = self.number("year", 2, 9998), self.number("month", 1, 12)
        day = self.number("day", 1, 31)
        try:
            return date(year, month, day)
        except ValueError:
            raise self.fault("day", f"is not a day of {year}-{month:02}") from None


def rows_of(path: Path) -> Iterator[Row]:
    """Yield the lines of the file, each with as many values as the header has columns."""
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    reader = csv.reader(TextIOWrapper(BytesIO(content), encoding="utf-8-sig", newline=""))
    try:
        header = next(reader, [])
        absent = [column for column in COLUMNS if column not in header]
        if absent:
            raise InputError(f"{path}, line 1: columns are missing: {', '.join(absent)}")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                counts = f"{len(values)} values for {len(header)} columns"
                raise InputError(f"{path}, line {reader.line_num}: {counts}")
            yield Row(path, reader.line_num, dict(zip(header, values, strict=True)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}, after line {reader.line_num}: not CSV text: {error}") from error


def key_of(row: Row) -> str:
    """Return the key of a row's flight: date, name, airport and scheduled time."""
    day, name = row.day(), f"{row.text('carrier')}{row.number('flight', 0, 99_999)}"
    return f"flight/{day}/{name}/{row.text('origin')}/{row.number('sched_dep_time', 0, 2400):04}"


def flight_of(row: Row, key: str) -> Flight:
    """Return the flight of a row, its times placed by the scheduled time and the delays."""
    if row.text("origin") not in NODES:
        raise row.fault("origin", f"is not one of {', '.join(NODES)}")
    scheduled = (row.day().toordinal() - 1) * MINUTES_A_DAY + row.clock("sched_dep_time")
    departure_delay = departed = arrival_delay = None
    outcome: Outcome = "cancelled"
    ended = scheduled
    if row.has("dep_time"):
        departure_delay = row.number("dep_delay", -MINUTES_A_DAY, LONGEST_DELAY)
        departed = scheduled + departure_delay
        outcome = "diverted"
        if row.has("arr_delay"):
            outcome = "arrived"
            arrival_delay = row.number("arr_delay", -MINUTES_A_DAY, LONGEST_DELAY)
        ended = departed + elapsed(row, departure_delay, arrival_delay)
    return Flight(
        key=key,
        name=f"{row.text('carrier')}{row.number('flight', 0, 99_999)}",
        carrier=row.text("carrier"),
        origin=row.text("origin"),
        destination=row.text("dest"),
        aircraft=row.text("tailnum") if row.has("tailnum") else None,
        scheduled=scheduled,
        announced=min(scheduled - ANNOUNCED_AHEAD, scheduled if departed is None else departed - 1),
        departed=departed,
        ended=ended,
        outcome=outcome,
        departure_delay=departure_delay,
        arrival_delay=arrival_delay,
    )


def elapsed(row: Row, departure_delay: int, arrival_delay: int | None) -> int:
    """Return the minutes from departure to arrival; without an arrival, as they were planned."""
    planned = row.clock("sched_arr_time") - row.clock("sched_dep_time")
    if arrival_delay is None:
        return max(1, planned % MINUTES_A_DAY)
    by_the_clocks = planned + arrival_delay - departure_delay
    if not row.has("air_time"):
        return max(1, by_the_clocks % MINUTES_A_DAY)
    # The arrival is in the destination's local time, whose zone the file does not name. Zones
    # differ by whole hours, so the minutes are right, and the air time says which hour it was.
    least = row.number("air_time", 0, MINUTES_A_DAY) + MIN_TAXI
    return least + (by_the_clocks - least) % MINUTES_AN_HOUR
