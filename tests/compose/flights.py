"""Runs in a container of a compose test: compares the flights' state with the file's answer.

Prints the keys that differ, one a line, and ends with 1 if there are any.
"""

from __future__ import annotations

import os
import sys

from broker import Inspector
from scripts.flights.comparison import differences
from scripts.flights.oracle import final_state
from scripts.flights.records import DATA, NODES, read_flights

PREFIXES = ("flight/", "aircraft/", *[f"count/{node}/" for node in NODES])


def main() -> None:
    """Compare the state at the head with the file's answer."""
    url, namespace = os.environ["STATEBROKER_URL"], os.environ["STATEBROKER_NAMESPACE"]
    with Inspector(url, namespace=namespace) as inspector:
        state = inspector.folded()
    flights = {key: value for key, value in state.items() if key.startswith(PREFIXES)}
    wrong = differences(flights, final_state(read_flights(DATA)))
    print(*wrong, sep="\n")  # noqa: T201 - for the test
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
