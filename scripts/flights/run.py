"""The command `scripts/demo`."""

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
from scripts.flights.deployment import WORKERS, deployed
from scripts.flights.json_lines import Throttle
from scripts.flights.processes import DemoError
from scripts.flights.records import DATA, InputError, read_flights
from scripts.flights.view import View

DEFAULT_SPEED = 0.0
PLAIN_INTERVAL_S = 2.0
FRAMES_A_SECOND = 8
DIFFERENCES_SHOWN = 10
EXIT_DIFFERENT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

DESCRIPTION = """\
Replays a month of real flights through statebroker and checks the result.

Three producers, one for each airport of New York (EWR, JFK, LGA), write the
flights; two flush workers and two schedulers publish them; two replicas
follow. In the end every replica, the full-state hash and the state computed
from the file are compared. In a terminal a board shows the progress; elsewhere
it is a line every few seconds.
"""
EXAMPLES = """\
examples:
  scripts/demo                       half a minute, with a server of its own
  scripts/demo --speed max --json    as fast as possible, one JSON object
  scripts/demo --kill scheduler      and kill the active scheduler on the way

Exit status: 0 if all states agree, 1 if they do not or a process failed, 2 for
wrong usage or a file that cannot be read.
"""

Show = Callable[[View], None]


def speed(text: str) -> float:
    """Return a speed in simulated seconds per second; `max` is infinity."""
    value = inf if text == "max" else float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0, and not max")
    return value


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--speed",
        type=speed,
        default=DEFAULT_SPEED,
        metavar="N|max",
        help="simulated seconds per second (default: a month in 33 s; max: no waiting)",
    )
    parser.add_argument(
        "--flights",
        type=Path,
        default=DATA,
        metavar="FILE",
        help="CSV file of flights, plain or gzip (default: January 2013)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no board")
    parser.add_argument(
        "--kill",
        choices=[*WORKERS, "subscriber"],
        help="SIGKILL one of these processes in the middle of the replay; another takes over",
    )
    parser.add_argument("--url", metavar="URL", help="use a running server (default: start one)")
    return parser.parse_args(argv)


@contextmanager
def display(*, is_silent: bool) -> Iterator[Show]:
    """Yield a function that shows a view: as a board, as plain lines, or not at all."""
    console = Console(highlight=False)
    if is_silent:
        yield lambda _: None
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=FRAMES_A_SECOND) as live:
            yield lambda view: live.update(board(view))
    else:
        yield PlainLines().show


class PlainLines:
    """Progress for output that is no terminal: a line every few seconds, if something changed."""

    def __init__(self) -> None:
        self.throttle = Throttle(PLAIN_INTERVAL_S)
        self.last = ""

    def show(self, view: View) -> None:
        """Print a line if one is due and something changed."""
        if self.throttle.is_due() and self.last != (line := plain_line(view)):
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
    """Return all faults."""
    verdict = summary.verdict
    return [*verdict.accounts, *verdict.convergence, *verdict.oracle]


def print_summary(summary: Summary) -> None:
    """Print the summary as a table."""
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
        table.add_row("killed", summary.killed)
    table.add_row("every delta counted once", yes_no(not verdict.accounts))
    table.add_row("replicas equal the full state", yes_no(not verdict.convergence))
    table.add_row("both equal the file's state", yes_no(not verdict.oracle))
    console.print(table)
    for fault in faults(summary)[:DIFFERENCES_SHOWN]:
        console.print(fault, markup=False)


def yes_no(is_so: bool) -> str:  # noqa: FBT001 - its only argument
    """Return yes or no, in colour."""
    return "[green]yes[/]" if is_so else "[bold red]NO[/]"


def on_sigterm(_number: int, _frame: object) -> None:
    """Exit, so that all child processes are stopped."""
    raise SystemExit(EXIT_TERMINATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        flights = read_flights(options.flights)
        pace = options.speed or default_speed(flights)
        with deployed(options.url) as place, display(is_silent=options.json) as show:
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
        print_summary(summary)
    return 0 if summary.verdict.is_good else EXIT_DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
