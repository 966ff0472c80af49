"""The live board of a long-running cluster: what one replica holds, and what Redis counts.

In a terminal it is updated in place; in a log it is printed every few seconds. The first board is
shown when the replica is live; until then it says what it waits for. While the server is away later
it shows the last state as stale.
"""

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

from rich.console import Console
from rich.live import Live

from broker import AccessError, BrokerError, Inspector, Replica
from scripts.flights.board import WIDTH, board
from scripts.flights.events import Movement, movements_of
from scripts.flights.json_lines import Throttle, one_line_errors, report
from scripts.flights.records import DATA, MINUTES_A_DAY, NODES, read_flights
from scripts.flights.replay import checkpoint_key, retry_until_connected
from scripts.flights.subscriber import MOVES_SHOWN, Moves, airports, finite, follow, stats
from scripts.flights.view import Node, Totals, View

LOG_INTERVAL_S = 5.0
POLL_INTERVAL_S = 1.0
FRAME_S = 0.25


class Plan:
    """What the producers will write, computed from the same file."""

    def __init__(self, path: Path) -> None:
        flights = read_flights(path)
        movements = movements_of(flights)
        self.flights = len(flights)
        self.first = movements[0].minute if movements else 0
        self.last = movements[-1].minute if movements else 0
        self.of = {node: NodePlan([m for m in movements if m.node == node]) for node in NODES}


class NodePlan:
    """The plan of one node: minutes, and the number of deltas up to each movement."""

    def __init__(self, movements: Sequence[Movement]) -> None:
        self.minutes = [movement.minute for movement in movements]
        self.deltas = [*accumulate((movement.deltas for movement in movements), initial=0)]

    def at(self, done: int) -> Node:
        """Return the node's progress when `done` movements are written."""
        return Node(
            total=len(self.minutes),
            planned_deltas=self.deltas[-1],
            done=done,
            deltas=self.deltas[done],
            minute=self.minutes[done - 1] if done else 0,
        )


def poll_totals(view: View, url: str | None, namespace: str) -> None:
    """Keep the totals current while the server is reachable."""
    while True:
        try:
            with Inspector(url, namespace=namespace) as inspector:
                while True:
                    view.add_totals(Totals.of(inspector.status()))
                    sleep(POLL_INTERVAL_S)
        except AccessError:
            raise
        except BrokerError:
            sleep(POLL_INTERVAL_S)


def update_view(view: View, plan: Plan, replica: Replica, name: str) -> None:
    """Copy the replica's state and status into the view."""
    view.nodes = {node: plan.of[node].at(replica.get(checkpoint_key(node), 0)) for node in NODES}
    view.airports = airports(replica)
    view.replicas = {
        name: {
            "status": str(replica.status),
            "lag": finite(replica.lag),
            "keys": len(replica),
            "stats": stats(replica),
        }
    }


def wait_until_live(replica: Replica) -> None:
    """Return once the replica is live, and report every few seconds what it waits for."""
    while True:
        try:
            replica.wait_live(LOG_INTERVAL_S)
        except TimeoutError:
            report("waiting", status=str(replica.status), reasons=replica.health.reasons)
        else:
            return


@contextmanager
def display() -> Iterator[Callable[[View], None]]:
    """Yield a function that shows a view: at once in a terminal, every few seconds in a log."""
    console = Console(highlight=False)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            yield lambda view: live.update(board(view), refresh=True)
        return
    plain = Console(highlight=False, width=WIDTH)
    throttle = Throttle(LOG_INTERVAL_S)

    def show(view: View) -> None:
        if throttle.is_due():
            plain.print(board(view))

    yield show


def arguments() -> argparse.Namespace:
    """Return the options; defaults come from the environment."""
    setting = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=setting("STATEBROKER_URL"))
    parser.add_argument("--namespace", default=setting("STATEBROKER_NAMESPACE", "default"))
    parser.add_argument("--flights", type=Path, default=DATA)
    parser.add_argument("--speed", type=float, default=setting("FLIGHTS_SPEED", str(MINUTES_A_DAY)))
    parser.add_argument("--name", default="board", help="name of the replica on the board")
    return parser.parse_args()


def main() -> None:
    """Show the board until stopped."""
    options = arguments()
    plan = Plan(options.flights)
    view = View(plan.flights, plan.first, plan.last, options.speed)
    view.started = monotonic()
    moves: Moves = deque(maxlen=MOVES_SHOWN)
    place = (options.url, options.namespace)
    with retry_until_connected(lambda: Replica(place[0], namespace=place[1])) as replica:
        wait_until_live(replica)
        Thread(target=follow, args=(replica, moves), name="moves", daemon=True).start()
        Thread(target=poll_totals, args=(view, *place), name="totals", daemon=True).start()
        with display() as show:
            while True:
                update_view(view, plan, replica, options.name)
                view.moves = list(moves)
                # Without what Redis counts, the board would show zeros.
                if view.samples:
                    show(view)
                sleep(FRAME_S)


if __name__ == "__main__":
    with one_line_errors():
        main()
