"""The board of a cluster that runs for long: what one subscriber sees, and what Redis counts.

A terminal shows it as it changes; a log gets it every few seconds. It waits for a server that is
away, and says of what it last saw that it is stale.
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
from scripts.flights.lines import Pace, one_line_errors
from scripts.flights.picture import Node, Picture, Totals
from scripts.flights.records import DATA, MINUTES_A_DAY, NODES, read_flights
from scripts.flights.replay import mark_of, once_there
from scripts.flights.subscriber import MOVES_SHOWN, Moves, airports, finite, follow, stats

LOG_INTERVAL_S = 5.0
LOOK_INTERVAL_S = 1.0
FRAME_S = 0.25


class Plan:
    """What the producers are going to write, out of the same file that they have."""

    def __init__(self, path: Path) -> None:
        flights = read_flights(path)
        movements = movements_of(flights)
        self.flights = len(flights)
        self.first = movements[0].minute if movements else 0
        self.last = movements[-1].minute if movements else 0
        self.of = {node: NodePlan([m for m in movements if m.node == node]) for node in NODES}


class NodePlan:
    """The part of one node: minutes, and deltas up to each movement."""

    def __init__(self, movements: Sequence[Movement]) -> None:
        self.minutes = [movement.minute for movement in movements]
        self.deltas = [*accumulate((movement.deltas for movement in movements), initial=0)]

    def at(self, done: int) -> Node:
        """Return how far the node is when so many movements are done."""
        return Node(
            total=len(self.minutes),
            planned_deltas=self.deltas[-1],
            done=done,
            deltas=self.deltas[done],
            minute=self.minutes[done - 1] if done else 0,
        )


def look(picture: Picture, url: str | None, namespace: str) -> None:
    """Keep the totals current, whenever the server is there."""
    while True:
        try:
            with Inspector(url, namespace=namespace) as inspector:
                while True:
                    picture.add_totals(Totals.of(inspector.status()))
                    sleep(LOOK_INTERVAL_S)
        except AccessError:
            raise
        except BrokerError:
            sleep(LOOK_INTERVAL_S)


def draw(picture: Picture, plan: Plan, replica: Replica, name: str) -> None:
    """Put what the replica holds, and what it is worth, into the picture."""
    picture.nodes = {node: plan.of[node].at(replica.get(mark_of(node), 0)) for node in NODES}
    picture.airports = airports(replica)
    picture.replicas = {
        name: {
            "status": str(replica.status),
            "lag": finite(replica.lag),
            "keys": len(replica),
            "stats": stats(replica),
        }
    }


@contextmanager
def display() -> Iterator[Callable[[Picture], None]]:
    """Give the function that shows a picture: at once in a terminal, now and then in a log."""
    console = Console(highlight=False)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            yield lambda picture: live.update(board(picture), refresh=True)
        return
    plain = Console(highlight=False, width=WIDTH)
    pace = Pace(LOG_INTERVAL_S)

    def show(picture: Picture) -> None:
        if pace.is_due():
            plain.print(board(picture))

    yield show


def arguments() -> argparse.Namespace:
    """Return the command line; what is left out comes from the environment."""
    told = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=told("STATEBROKER_URL"))
    parser.add_argument("--namespace", default=told("STATEBROKER_NAMESPACE", "default"))
    parser.add_argument("--flights", type=Path, default=DATA)
    parser.add_argument("--speed", type=float, default=told("FLIGHTS_SPEED", str(MINUTES_A_DAY)))
    parser.add_argument("--name", default="board", help="of the replica, on the board")
    return parser.parse_args()


def main() -> None:
    """Follow, and show the board until stopped."""
    options = arguments()
    plan = Plan(options.flights)
    picture = Picture(plan.flights, plan.first, plan.last, options.speed)
    picture.started = monotonic()
    moves: Moves = deque(maxlen=MOVES_SHOWN)
    place = (options.url, options.namespace)
    with once_there(lambda: Replica(place[0], namespace=place[1])) as replica, display() as show:
        Thread(target=follow, args=(replica, moves), name="moves", daemon=True).start()
        Thread(target=look, args=(picture, *place), name="totals", daemon=True).start()
        while True:
            draw(picture, plan, replica, options.name)
            picture.moves = list(moves)
            show(picture)
            sleep(FRAME_S)


if __name__ == "__main__":
    with one_line_errors():
        main()
