"""The options of `scripts/bench`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmarks.goals import PARTS
from scripts.benchmarks.measure import (
    CELL_NAMES,
    CONTENDER_NAMES,
    CURVE_NAMES,
    CURVE_ROUNDS,
    GRID_NAMES,
    QUICK_ROUNDS,
    ROUNDS,
    SCENARIO_NAMES,
)

TARGETS = "targets"
MAX_ROUNDS = 100
MAX_UPDATES = 1_000_000
DESCRIPTION = """\
Measures statebroker and what a user would pick instead: by turns, in several
rounds, with real servers on this machine. Checks that each reader ends with
the right state; prints medians and ratios. Writes no file unless --docs names
a folder.
"""
EXAMPLES = """\
examples:
  scripts/bench --quick                           comparison, about a minute
  scripts/bench --only targets                    all that has a target, 25 minutes
  scripts/bench --only shapes                     values that people write
  scripts/bench --only record/zeromq              one shape of one contender
  scripts/bench --only throughput --only load     two scenarios
  scripts/bench --only statebroker --only zeromq  two contenders, in all scenarios
  scripts/bench --only curve-chunk                one cost curve
  scripts/bench --docs docs/benchmarks            all (40 minutes), and the page
  scripts/bench --redraw --docs docs/benchmarks   the page, from earlier numbers

grids (each contender once for each shape of values):
  {grids}
  {cells}
scenarios:
  {scenarios}
contenders:
  {contenders}
curves:
  {curves}

Exit status: 0 if every run counts, 1 if one does not, 2 for wrong usage.
Linux only.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; exit with status 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=DESCRIPTION,
        epilog=EXAMPLES.format(
            grids=_listed(GRID_NAMES),
            cells=_listed(CELL_NAMES),
            scenarios=_listed(SCENARIO_NAMES),
            contenders=_listed(CONTENDER_NAMES),
            curves=_listed(CURVE_NAMES),
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[
            *(TARGETS, *GRID_NAMES, *CELL_NAMES),
            *(*SCENARIO_NAMES, *CONTENDER_NAMES, *CURVE_NAMES),
        ],
        metavar="NAME",
        help=(
            "measure only this grid, scenario, contender or curve (listed below); repeatable. "
            "targets: all that the table of targets needs"
        ),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=(
            "small runs of what the targets compare: rough numbers in about a minute on two "
            "cores with nothing else to do"
        ),
    )
    parser.add_argument(
        "--rounds",
        type=_between(MAX_ROUNDS),
        metavar="N",
        help=(
            f"how often each number is measured (default: {ROUNDS}; points of curves that no "
            f"target compares {CURVE_ROUNDS}; --quick {QUICK_ROUNDS})"
        ),
    )
    parser.add_argument(
        "--updates",
        type=_between(MAX_UPDATES),
        metavar="N",
        help="updates in each run (default: as many as take each contender a second or more)",
    )
    parser.add_argument(
        "--scale",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="share of the default updates and durations, above 0, up to 1 (default: 1)",
    )
    parser.add_argument(
        "--server",
        choices=("redis", "valkey"),
        help="redis-server on PATH, or the bundled Valkey (default: redis if there is one)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the order in each round (default: 1)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print all numbers as one JSON object, no tables"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help=(
            "write page, numbers and pictures there. With --only NAME of scenarios and curves, "
            "the numbers of all others in that folder are kept"
        ),
    )
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="measure nothing; write page and pictures from the numbers in the folder of --docs",
    )
    options = parser.parse_args(argv)
    options.only = [name for one in options.only for name in (PARTS if one == TARGETS else (one,))]
    if options.redraw and options.docs is None:
        parser.error("--redraw needs --docs FOLDER, the folder with the numbers")
    return options


def _listed(names: Sequence[str]) -> str:
    """Return names in lines that fit a terminal of 80 columns."""
    return "\n  ".join(textwrap.wrap(", ".join(names), width=76, break_on_hyphens=False))


def _between(limit: int) -> Callable[[str], int]:
    def checked(text: str) -> int:
        value = int(text)
        if not 1 <= value <= limit:
            raise argparse.ArgumentTypeError(f"{value} is not from 1 to {limit:,}")
        return value

    checked.__name__ = "number"  # argparse prints: invalid number value
    return checked


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0, up to 1")
    return value
