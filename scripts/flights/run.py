"""The command line of `scripts/demo`."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from broker import BrokerError
from scripts.flights.board import board, plain_line, size
from scripts.flights.demo import Demo, Summary, default_speed
from scripts.flights.lines import Pace
from scripts.flights.picture import Picture
from scripts.flights.processes import DemoError
from scripts.flights.records import DATA, InputError, read_flights
from scripts.flights.stage import WORKERS, stage

DEFAULT_SPEED = 0.0
PLAIN_INTERVAL_S = 2.0
FRAMES_A_SECOND = 8
DIFFERENCES_SHOWN = 10
EXIT_DIFFERENT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

Show = Callable[[Picture], None]


def speed(text: str) -> float:
    """Return a speed in simulated seconds a second; `max` is without end."""
    value = inf if text == "max" else float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("a speed is more than 0, or max")
    return value


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description=(
            "Three nodes (EWR, JFK, LGA) replay real flights, replicas follow, and in the end "
            "every replica, the full-state hash and the file are compared. Ends with 0 if all "
            "of them agree."
        ),
    )
    parser.add_argument(
        "--speed",
        type=speed,
        default=DEFAULT_SPEED,
        metavar="N|max",
        help="simulated seconds a second (default: a month in 33 s)",
    )
    parser.add_argument(
        "--flights", type=Path, default=DATA, metavar="FILE", help="another file, plain or gzip"
    )
    parser.add_argument("--json", action="store_true", help="no board, one JSON object")
    parser.add_argument(
        "--kill",
        choices=[*WORKERS, "subscriber"],
        help="SIGKILL one of these in the middle of the replay",
    )
    parser.add_argument("--url", help="a server that runs already (default: one of its own)")
    return parser.parse_args(argv)


@contextmanager
def display(*, is_silent: bool) -> Iterator[Show]:
    """Give the function that shows a picture: a board, plain lines, or nothing."""
    console = Console(highlight=False)
    if is_silent:
        yield lambda _: None
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=FRAMES_A_SECOND) as live:
            yield lambda picture: live.update(board(picture))
    else:
        yield PlainLines().show


class PlainLines:
    """Progress for a terminal that is none: a line now and then, if there is something new."""

    def __init__(self) -> None:
        self.pace = Pace(PLAIN_INTERVAL_S)
        self.last = ""

    def show(self, picture: Picture) -> None:
        """Print a line when it is time for one."""
        if self.pace.is_due() and self.last != (line := plain_line(picture)):
            self.last = line
            print(line, flush=True)


def as_object(summary: Summary) -> dict[str, object]:
    """Return the summary as one JSON object."""
    verdict, totals = summary.verdict, summary.totals
    return {
        "flights": summary.flights,
        "deltas": summary.deltas,
        "batches": totals.batches,
        "by_count": totals.by_count,
        "by_age": totals.by_age,
        "bytes_published": totals.bytes_published,
        "seconds": round(summary.seconds, 3),
        "speed": "max" if summary.speed == inf else summary.speed,
        "killed": summary.killed,
        "namespace": summary.namespace,
        "keys": verdict.keys,
        "digest": verdict.digest,
        "replicas": len(summary.replicas),
        "replica": {
            name: {key: final[key] for key in ("status", "keys", "digest", "stats")}
            for name, final in summary.replicas.items()
        },
        "totals": asdict(totals),
        "converged": not verdict.convergence,
        "oracle_match": not verdict.oracle,
        "accounted": not verdict.accounts,
        "faults": faults(summary)[:DIFFERENCES_SHOWN],
    }


def faults(summary: Summary) -> list[str]:
    """Return everything that is wrong."""
    verdict = summary.verdict
    return [*verdict.accounts, *verdict.convergence, *verdict.oracle]


def tell(summary: Summary) -> None:
    """Print the summary for a person."""
    console = Console(highlight=False)
    totals, verdict = summary.totals, summary.verdict
    table = Table(title="summary", show_header=False, title_justify="left")
    rate = summary.deltas / summary.seconds
    table.add_row("replayed", f"{summary.flights:,} flights in {summary.seconds:.1f} s")
    table.add_row("deltas", f"{summary.deltas:,} written and published, {rate:,.0f}/s")
    table.add_row(
        "batches",
        f"{totals.batches:,}: {totals.by_count:,} by count, {totals.by_age:,} by age; "
        f"{size(totals.bytes_published)}",
    )
    for name, final in summary.replicas.items():
        table.add_row(f"replica {name}", f"{final['keys']:,} keys, {final['digest'][:16]}")
    table.add_row("full-state hash", f"{verdict.keys:,} keys, {verdict.digest[:16]}")
    if summary.killed:
        table.add_row("killed on the way", summary.killed)
    table.add_row("every delta counted once", answer(not verdict.accounts))
    table.add_row("replicas equal the full state", answer(not verdict.convergence))
    table.add_row("both equal the file's answer", answer(not verdict.oracle))
    console.print(table)
    for fault in faults(summary)[:DIFFERENCES_SHOWN]:
        console.print(fault, markup=False)


def answer(is_so: bool) -> str:  # noqa: FBT001 - it is all that there is to say
    """Return yes or no, in colour."""
    return "[green]yes[/]" if is_so else "[bold red]NO[/]"


def interrupted(_number: int, _frame: object) -> None:
    """End as from the terminal, so that all children are stopped on the way out."""
    raise SystemExit(EXIT_TERMINATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, interrupted)
    try:
        flights = read_flights(options.flights)
        pace = options.speed or default_speed(flights)
        with stage(options.url) as place, display(is_silent=options.json) as show:
            demo = Demo(place, options.flights.resolve(), flights, pace, options.kill)
            summary = demo.run(show)
    except (InputError, BrokerError, DemoError) as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        if options.json:
            print(json.dumps({"converged": False, "oracle_match": False, "error": str(error)}))
        return EXIT_USAGE if isinstance(error, InputError) else EXIT_DIFFERENT
    except KeyboardInterrupt:
        print("scripts/demo: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    if options.json:
        print(json.dumps(as_object(summary)))
    else:
        tell(summary)
    return 0 if summary.verdict.is_good else EXIT_DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
