"""One airport: replays its movements against a simulated clock, through a `Producer`."""

import argparse
import gc
import os
from collections.abc import Sequence
from math import inf
from pathlib import Path
from time import monotonic, sleep

from broker import Producer
from scripts.flights.events import Movement, movements_of
from scripts.flights.json_lines import Throttle, one_line_errors, orders_queue, report
from scripts.flights.records import MINUTES_A_DAY, NODES, read_flights

SECONDS_A_MINUTE = 60
REPORT_INTERVAL_S = 0.2
TICK_S = 0.01
FLUSH_TIMEOUT_S = 60.0


class Clock:
    """The simulated time: starts at a minute, and runs `speed` seconds a second."""

    def __init__(self, minute: int, speed: float) -> None:
        self.minute = minute
        self.speed = speed
        self.started = monotonic()

    def now(self) -> float:
        """Return the simulated minute; infinity at infinite speed."""
        if self.speed == inf:
            return inf
        return self.minute + (monotonic() - self.started) * self.speed / SECONDS_A_MINUTE


def write(producer: Producer, movement: Movement) -> None:
    """Write one movement."""
    if len(movement.sets) > 1:
        producer.set_many(movement.sets)
    else:
        for key, value in movement.sets.items():
            producer.set(key, value)
    for key, amount in movement.increments:
        producer.increment(key, amount)
    for key in movement.deletes:
        producer.delete(key)


def replay(producer: Producer, movements: Sequence[Movement], clock: Clock) -> None:
    """Write all movements, each when the clock has reached its minute."""
    throttle = Throttle(REPORT_INTERVAL_S)
    done = deltas = 0
    while done < len(movements):
        now = clock.now()
        while done < len(movements) and movements[done].minute <= now:
            write(producer, movements[done])
            deltas += movements[done].deltas
            done += 1
            if throttle.is_due():
                report("progress", minute=movements[done - 1].minute, done=done, deltas=deltas)
        if done < len(movements):
            if throttle.is_due():
                report("progress", minute=int(now), done=done, deltas=deltas)
            sleep(TICK_S)
    minute = movements[-1].minute if movements else clock.minute
    report("progress", minute=minute, done=done, deltas=deltas)


def planned(path: Path, node: str) -> tuple[int, list[Movement]]:
    """Return the minute at which the replay of all nodes begins, and the movements of one."""
    # Nothing created here becomes garbage: collections would take half of the time.
    gc.disable()
    movements = movements_of(read_flights(path))
    mine = [movement for movement in movements if movement.node == node]
    gc.freeze()
    gc.enable()
    return movements[0].minute if movements else 0, mine


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=os.environ.get("STATEBROKER_URL"))
    parser.add_argument("--namespace", default=os.environ.get("STATEBROKER_NAMESPACE", "default"))
    parser.add_argument("--node", required=True, choices=NODES)
    parser.add_argument("--flights", required=True, type=Path)
    parser.add_argument("--speed", type=float, default=float(MINUTES_A_DAY), help="inf: no waiting")
    return parser.parse_args()


def main() -> None:
    """Prepare, wait for the order to start, replay, and report the token of the last write."""
    options = arguments()
    first, mine = planned(options.flights, options.node)
    orders = orders_queue()
    with Producer(options.url, namespace=options.namespace, node=options.node) as producer:
        report("ready", total=len(mine), deltas=sum(movement.deltas for movement in mine))
        orders.get()
        replay(producer, mine, Clock(first, options.speed))
        token = producer.flush(timeout=FLUSH_TIMEOUT_S)
        report("done", token=str(token), stats=producer.stats().as_dict())
        orders.get()


if __name__ == "__main__":
    with one_line_errors():
        main()
