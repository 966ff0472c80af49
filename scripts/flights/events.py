"""The changes that a file of flights makes to the shared state, in simulated time.

Keys: `flight/<date>/<name>/<airport>/<hhmm>` while a flight is of interest, `aircraft/<tail>` for
its last known place, `count/<airport>/<what>` and `count/<airport>/<carrier>/<what>` for the
counters. `delay_minutes` adds up the departure delays with their sign, an early departure counting
negative, so divided by `departures` it is the mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scripts.flights.records import Flight, clock_text

Fields = dict[str, str | int | bool | None]

KEPT_AFTER_END = 4 * 60
"""Minutes that a flight which arrived, was diverted or was cancelled stays in the state."""


@dataclass(frozen=True, slots=True)
class Movement:
    """What one node writes at one simulated minute: sets, then increments, then deletes."""

    minute: int
    node: str
    sets: Mapping[str, Fields] = field(default_factory=dict)
    increments: tuple[tuple[str, int], ...] = ()
    deletes: tuple[str, ...] = ()

    @property
    def deltas(self) -> int:
        """The number of deltas this movement makes."""
        return len(self.sets) + len(self.increments) + len(self.deletes)


def movements_of(flights: Iterable[Flight]) -> list[Movement]:
    """Return all movements in the order in which each node must write its own.

    The replay ends with the last arrival; flights that are to be deleted later stay in the state.
    """
    flights = list(flights)
    last = max((flight.ended for flight in flights), default=0)
    # Between two nodes no order is promised, so all places of an aircraft are written by one node:
    # the airport at which the file saw it first. Elsewhere its flight is written apart.
    owners: dict[str, str] = {}
    for flight in flights:
        if flight.aircraft is not None:
            owners.setdefault(flight.aircraft, flight.origin)
    movements: list[Movement] = []
    for flight in flights:
        movements.append(announcement(flight))
        if flight.departed is not None:
            movements += departure(flight, flight.departed, owners)
        movements += ending(flight, owners)
        if flight.ended + KEPT_AFTER_END <= last:
            minute = flight.ended + KEPT_AFTER_END
            movements.append(Movement(minute, flight.origin, deletes=(flight.key,)))
    # A stable sort: at the same minute the order of the rows decides, then the order above.
    return sorted(movements, key=lambda movement: movement.minute)


def announcement(flight: Flight) -> Movement:
    """Return the movement that puts a flight into the state."""
    return Movement(
        flight.announced,
        flight.origin,
        {flight.key: flight_fields(flight, "scheduled", None)},
        counted(flight, scheduled=1),
    )


def departure(flight: Flight, minute: int, owners: Mapping[str, str]) -> list[Movement]:
    """Return the movements of a departure."""
    delay = flight.departure_delay or 0
    movement = Movement(
        minute,
        flight.origin,
        {flight.key: flight_fields(flight, "departed", delay)},
        (
            *counted(flight, departures=1, delay_minutes=delay),
            *counted_by_carrier(flight, departures=1, delay_minutes=delay),
        ),
    )
    place: Fields = {"place": flight.origin, "heading": flight.destination, "airborne": True}
    return with_aircraft(movement, flight, place, owners)


def ending(flight: Flight, owners: Mapping[str, str]) -> list[Movement]:
    """Return the movements of an arrival, a diversion or a cancellation."""
    sets = {flight.key: flight_fields(flight, flight.outcome, flight.arrival_delay)}
    if flight.outcome == "cancelled":
        increments = counted(flight, cancellations=1) + counted_by_carrier(flight, cancellations=1)
        return [Movement(flight.ended, flight.origin, sets, increments)]
    place: Fields
    if flight.outcome == "diverted":
        place = {"place": None, "heading": flight.destination, "airborne": False}
        increments = counted(flight, diversions=1)
    else:
        place = {"place": flight.destination, "heading": None, "airborne": False}
        increments = counted(flight, arrivals=1)
    movement = Movement(flight.ended, flight.origin, sets, increments)
    return with_aircraft(movement, flight, place, owners)


def with_aircraft(
    movement: Movement, flight: Flight, place: Fields, owners: Mapping[str, str]
) -> list[Movement]:
    """Return the movement with the aircraft's place in it, or in a second one of another node."""
    if flight.aircraft is None:
        return [movement]
    fields = {**place, "flight": flight.name, "at": clock_text(movement.minute)}
    aircraft = {f"aircraft/{flight.aircraft}": fields}
    owner = owners[flight.aircraft]
    if owner != movement.node:
        return [movement, Movement(movement.minute, owner, aircraft)]
    sets = {**movement.sets, **aircraft}
    return [Movement(movement.minute, owner, sets, movement.increments)]


def flight_fields(flight: Flight, status: str, delay: int | None) -> Fields:
    """Return the value of a flight's key."""
    return {
        "status": status,
        "from": flight.origin,
        "to": flight.destination,
        "aircraft": flight.aircraft,
        "due": clock_text(flight.scheduled),
        "delay": delay,
    }


def counted(flight: Flight, **amounts: int) -> tuple[tuple[str, int], ...]:
    """Return increments of the airport's counters."""
    prefix = f"count/{flight.origin}"
    return tuple([(f"{prefix}/{what}", amount) for what, amount in amounts.items()])


def counted_by_carrier(flight: Flight, **amounts: int) -> tuple[tuple[str, int], ...]:
    """Return increments of the counters of a carrier at an airport."""
    prefix = f"count/{flight.origin}/{flight.carrier}"
    return tuple([(f"{prefix}/{what}", amount) for what, amount in amounts.items()])
