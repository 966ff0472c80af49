"""One airport in a long-running cluster: replays its movements, through failures and restarts.

It waits for a server that is away. It keeps a checkpoint in the state: how many of its movements
Redis has accepted. After a restart it continues from there, and each delta counts once.
"""

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from time import sleep
from typing import TypeVar, cast

from broker import AccessError, ConnectError, DataLostError, Inspector, Producer
from scripts.flights.events import Movement
from scripts.flights.json_lines import Throttle, one_line_errors, report
from scripts.flights.producer import Clock, planned, write
from scripts.flights.records import DATA, MINUTES_A_DAY, NODES

CHECKPOINT_INTERVAL_S = 1.0
RETRY_S = 1.0
TICK_S = 0.01
CHECKPOINTS = "replay/"

T = TypeVar("T")


def checkpoint_key(node: str) -> str:
    """Return the key that holds how many movements of a node Redis has accepted."""
    return f"{CHECKPOINTS}{node}"


def retry_until_connected(make: Callable[[], T]) -> T:
    """Return what `make` returns; while the server cannot be reached, try again."""
    while True:
        try:
            return make()
        except AccessError:
            raise
        except ConnectError as error:
            report("waiting", error=str(error))
        sleep(RETRY_S)


def remaining(
    movements: Sequence[Movement], done: int, held: Mapping[str, object]
) -> tuple[list[Movement], set[str]]:
    """Return what is left to write, without the increments that are accepted already.

    Sets and deletes may be repeated; increments may not. Of each counter's increments a prefix is
    accepted, at least as long as the checkpoint says: the counter's value tells how long.

    Args:
        movements: all of a node.
        done: number of movements that are accepted, by the checkpoint.
        held: the state, with everything that was accepted.

    Returns:
        The movements, and the counters whose value matches no prefix: of those, deltas were lost.
    """
    sums: Counter[str] = Counter()
    later: defaultdict[str, list[int]] = defaultdict(list)
    for key, amount in increments(movements[:done]):
        sums[key] += amount
    for key, amount in increments(movements[done:]):
        later[key].append(amount)
    accepted: dict[str, int] = {}
    lost = set()
    for key in sums.keys() | later.keys():
        beginnings = enumerate(accumulate(later[key], initial=sums[key]))
        fitting = [count for count, total in beginnings if total == held.get(key, 0)]
        accepted[key] = fitting[0] if fitting else 0
        if not fitting:
            lost.add(key)
    left = []
    for movement in movements[done:]:
        kept = []
        for key, amount in movement.increments:
            if accepted[key]:
                accepted[key] -= 1
            else:
                kept.append((key, amount))
        left.append(replace(movement, increments=tuple(kept)))
    return left, lost


def increments(movements: Iterable[Movement]) -> Iterator[tuple[str, int]]:
    """Yield all increments, in their order."""
    for movement in movements:
        yield from movement.increments


def accepted_state(url: str | None, namespace: str, node: str) -> dict[str, object]:
    """Return the state once it contains everything that was accepted from a node."""
    with retry_until_connected(lambda: Inspector(url, namespace=namespace)) as inspector:
        while any(n.pending_deltas for n in inspector.status().nodes if n.node == node):
            sleep(TICK_S)
        return inspector.folded()


def checkpoint(producer: Producer, done: int, total: int) -> None:
    """Wait until Redis has accepted everything written, however long it is away; record that."""
    try:
        producer.flush()
    except DataLostError as error:
        report("lost", deltas=error.lost, error=str(error))
    producer.set(checkpoint_key(producer.node), done)
    report("progress", node=producer.node, done=done, total=total)


def replay(producer: Producer, movements: Sequence[Movement], done: int, speed: float) -> None:
    """Write the movements, each at its simulated minute.

    Args:
        producer: of their node.
        movements: those that are left.
        done: number of movements written before.
        speed: simulated seconds per second.
    """
    if not movements:
        return
    clock = Clock(movements[0].minute, speed)
    throttle = Throttle(CHECKPOINT_INTERVAL_S)
    total = done + len(movements)
    for number, movement in enumerate(movements, done):
        while movement.minute > clock.now():
            sleep(TICK_S)
        if throttle.is_due():
            checkpoint(producer, number, total)
        write(producer, movement)
    checkpoint(producer, total, total)
    producer.flush()


def arguments() -> argparse.Namespace:
    """Return the options; defaults come from the environment."""
    setting = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=setting("STATEBROKER_URL"))
    parser.add_argument("--namespace", default=setting("STATEBROKER_NAMESPACE", "default"))
    parser.add_argument("--shards", type=int, default=setting("STATEBROKER_SHARDS"))
    parser.add_argument("--node", required=True, choices=NODES)
    parser.add_argument("--flights", type=Path, default=DATA)
    parser.add_argument(
        "--speed",
        type=float,
        default=setting("FLIGHTS_SPEED", str(MINUTES_A_DAY)),
        help="simulated seconds per second (default: a day per minute); inf: no waiting",
    )
    return parser.parse_args()


def main() -> None:
    """Replay what is left."""
    options = arguments()
    _, mine = planned(options.flights, options.node)
    with retry_until_connected(
        lambda: Producer(
            options.url,
            namespace=options.namespace,
            node=options.node,
            shards=options.shards,
        )
    ) as producer:
        # Now that our node name is taken, nothing more of an earlier process can be accepted.
        held = accepted_state(options.url, options.namespace, options.node)
        done = cast("int", held.get(checkpoint_key(options.node), 0))
        left, lost = remaining(mine, done, held)
        if lost:
            report("lost", counters=sorted(lost))
        report("ready", node=options.node, done=done, total=len(mine))
        replay(producer, left, done, options.speed)
    report("done", node=options.node)


if __name__ == "__main__":
    with one_line_errors():
        main()
