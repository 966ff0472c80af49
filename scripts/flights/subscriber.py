"""One replica of the demo: reports its status, and writes its final state to a file."""

import argparse
import os
from collections import deque
from contextlib import suppress
from math import isfinite
from pathlib import Path
from queue import Empty
from threading import Thread
from typing import Any

import msgpack

from broker import ChangesOverflowError, Replica, Status
from scripts.flights.comparison import digest
from scripts.flights.json_lines import one_line_errors, orders_queue, report
from scripts.flights.records import NODES

REPORT_INTERVAL_S = 0.2
LIVE_TIMEOUT_S = 60.0
MOVES_SHOWN = 6
COUNTERS = (
    "scheduled",
    "departures",
    "arrivals",
    "cancellations",
    "diversions",
    "delay_minutes",
)

Moves = deque[list[str]]


def airports(replica: Replica) -> dict[str, dict[str, int]]:
    """Return the counters of each airport."""
    return {
        node: {what: replica.get(f"count/{node}/{what}", 0) for what in COUNTERS} for node in NODES
    }


def follow(replica: Replica, moves: Moves) -> None:
    """Append each movement of a flight, as it arrives."""
    while replica.status is not Status.CLOSED:
        # After an overflow it continues with the changes that come next; the board needs no others.
        with suppress(ChangesOverflowError):
            for change in replica.changes(prefix="flight/"):
                flight = change.value
                if isinstance(flight, dict) and flight["status"] != "scheduled":
                    moves.append(move(change.key, flight))


def move(key: str, flight: dict[str, Any]) -> list[str]:
    """Return a movement as a row of the board."""
    _, date, name, *_ = key.split("/")
    route = f"{flight['from']} → {flight['to']}"
    delay = "" if flight["delay"] is None else f"{flight['delay']:+d} min"
    return [date, name, route, flight["aircraft"] or "", flight["status"], delay]


def report_status(replica: Replica, moves: Moves) -> None:
    """Report the replica's status, and what the board shows of it."""
    report(
        "status",
        status=str(replica.status),
        lag=finite(replica.lag),
        keys=len(replica),
        airports=airports(replica),
        moves=list(moves),
        stats=stats(replica),
    )


def stats(replica: Replica) -> dict[str, object]:
    """Return the replica's counters; JSON has no infinity, which the lag is before it is live."""
    counters = replica.stats()
    return counters.as_dict() | {"lag_s": finite(counters.lag_s)}


def finite(number: float) -> float | None:
    """Return a number, or None for infinity."""
    return number if isfinite(number) else None


def shows(replica: Replica, token: str) -> bool:
    """Wait briefly for the writes of a token; report whether the replica has them."""
    try:
        replica.wait_for(token, REPORT_INTERVAL_S)
    except TimeoutError:
        return False
    return True


def finish(replica: Replica, moves: Moves, order: dict[str, Any]) -> None:
    """Wait until the replica has all writes of the tokens, then write its state to a file."""
    for token in order["tokens"]:
        while not shows(replica, token):
            report_status(replica, moves)
    state, _ = replica.snapshot()
    Path(order["path"]).write_bytes(msgpack.packb(state, datetime=True))
    report(
        "final",
        status=str(replica.status),
        keys=len(state),
        digest=digest(state),
        path=order["path"],
        stats=stats(replica),
    )


def main() -> None:
    """Go live, report the status, and write the state to a file on an order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=os.environ.get("STATEBROKER_URL"))
    parser.add_argument("--namespace", default=os.environ.get("STATEBROKER_NAMESPACE", "default"))
    options = parser.parse_args()
    orders = orders_queue()
    moves: Moves = deque(maxlen=MOVES_SHOWN)
    with Replica(options.url, namespace=options.namespace) as replica:
        replica.wait_live(LIVE_TIMEOUT_S)
        Thread(target=follow, args=(replica, moves), name="moves", daemon=True).start()
        report("ready")
        while True:
            try:
                order = orders.get(timeout=REPORT_INTERVAL_S)
            except Empty:
                report_status(replica, moves)
                continue
            finish(replica, moves, order)


if __name__ == "__main__":
    with one_line_errors():
        main()
