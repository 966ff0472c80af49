"""The state that the replay must end with, computed from the rows of the file.

This is independent of movements and of the broker: replicas are compared with it.
"""

from collections import Counter
from collections.abc import Sequence

from scripts.flights.records import Flight, clock_text

KEPT_MINUTES = 240


def final_state(flights: Sequence[Flight]) -> dict[str, object]:
    """Return the expected state: late flights, places of all aircraft, and counters."""
    return {**last_flights(flights), **aircraft_places(flights), **totals(flights)}


def last_flights(flights: Sequence[Flight]) -> dict[str, object]:
    """Return the flights that ended too late to be deleted."""
    final_minute = max((flight.ended for flight in flights), default=0)
    state: dict[str, object] = {}
    for flight in flights:
        if final_minute - flight.ended < KEPT_MINUTES:
            state[flight.key] = {
                "status": flight.outcome,
                "from": flight.origin,
                "to": flight.destination,
                "aircraft": flight.aircraft,
                "due": clock_text(flight.scheduled),
                "delay": flight.arrival_delay,
            }
    return state


def aircraft_places(flights: Sequence[Flight]) -> dict[str, object]:
    """Return the last known place of each aircraft; at the same minute the later row counts."""
    latest: dict[str, Flight] = {}
    for flight in flights:
        # All flights end before the replay does: an aircraft is seen last at its latest end.
        if flight.aircraft is None or flight.departed is None:
            continue
        known = latest.get(flight.aircraft)
        if known is None or flight.ended >= known.ended:
            latest[flight.aircraft] = flight
    state: dict[str, object] = {}
    for name, flight in latest.items():
        arrived = flight.outcome == "arrived"
        state[f"aircraft/{name}"] = {
            "place": flight.destination if arrived else None,
            "heading": None if arrived else flight.destination,
            "airborne": False,
            "flight": flight.name,
            "at": clock_text(flight.ended),
        }
    return state


def totals(flights: Sequence[Flight]) -> dict[str, int]:
    """Return the counters of each airport, and of each carrier there."""
    sums: Counter[str] = Counter()
    for flight in flights:
        airport = f"count/{flight.origin}"
        sums[f"{airport}/scheduled"] += 1
        if flight.outcome == "arrived":
            sums[f"{airport}/arrivals"] += 1
        elif flight.outcome == "diverted":
            sums[f"{airport}/diversions"] += 1
        for place in (airport, f"{airport}/{flight.carrier}"):
            if flight.outcome == "cancelled":
                sums[f"{place}/cancellations"] += 1
            else:
                sums[f"{place}/departures"] += 1
                sums[f"{place}/delay_minutes"] += flight.departure_delay or 0
    return dict(sums)
