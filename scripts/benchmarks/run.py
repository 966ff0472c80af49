"""The command line of `scripts/bench`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from scripts.benchmarks.archive import merged, read
from scripts.benchmarks.curves import CURVES
from scripts.benchmarks.document import Run, as_object
from scripts.benchmarks.measure import (
    CONTENDER_NAMES,
    CURVE_NAMES,
    CURVE_ROUNDS,
    QUICK_ROUNDS,
    ROUNDS,
    SCENARIO_NAMES,
    measure,
)
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.page import page
from scripts.benchmarks.processes import ROOT
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.table import tell

EXIT_FAULTS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
MAX_ROUNDS = 100
MAX_UPDATES = 1_000_000
DOCS = ROOT / "docs" / "benchmarks"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=(
            "Runs statebroker and what a user would pick instead, in turns, several rounds; "
            "checks that each reader's state is right; prints medians and ratios. Ends with 0 if "
            "every run counts, with 1 if not. Linux only."
        ),
        epilog=(
            f"scenarios: {', '.join(SCENARIO_NAMES)}; contenders: {', '.join(CONTENDER_NAMES)}; "
            f"curves: {', '.join(CURVE_NAMES)}"
        ),
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[*SCENARIO_NAMES, *CONTENDER_NAMES, *CURVE_NAMES],
        metavar="NAME",
        help="only this scenario, this contender, or this curve; repeatable",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}, and fewer points: within three minutes",
    )
    parser.add_argument(
        "--rounds",
        type=_between(MAX_ROUNDS),
        metavar="N",
        help=f"(default: {ROUNDS}; of curves {CURVE_ROUNDS})",
    )
    parser.add_argument(
        "--updates",
        type=_between(MAX_UPDATES),
        metavar="N",
        help="in each run of each contender; by default as many as take a second or more",
    )
    parser.add_argument(
        "--part",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="of the updates and seconds that each run usually takes (default: 1)",
    )
    parser.add_argument(
        "--server",
        choices=("redis", "valkey"),
        help="redis-server from the PATH, or the bundled Valkey (default: redis if there is one)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order in each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help=(
            "write page and plots there (default: docs/benchmarks, if nothing is left out by "
            "--only or changed by --updates or --part; else nowhere). With --only NAME of "
            "scenarios and curves the others' numbers that are there stay"
        ),
    )
    parser.add_argument("--no-docs", action="store_true", help="write no page")
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="measure nothing: write page and plots anew from the numbers that are there",
    )
    return parser.parse_args(argv)


def _between(most: int) -> Callable[[str], int]:
    def checked(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from 1 to {most:,}")
        return value

    checked.__name__ = "number"  # in argparse's words: invalid number value
    return checked


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0, up to 1")
    return value


def docs_of(options: argparse.Namespace) -> Path | None:
    """Return where page and plots go, None for nowhere."""
    if options.no_docs:
        return None
    if options.docs is not None:
        return Path(options.docs)
    is_whole = not options.only and not options.updates and options.part == 1
    return DOCS if is_whole else None


def with_before(run: Run, options: argparse.Namespace, folder: Path) -> Run:
    """Return the run with the numbers that are in the folder and were not to be made anew.

    Raises:
        BenchmarkError: they do not belong on one page.
    """
    file = folder / "numbers.json"
    if not options.only or set(options.only) & set(CONTENDER_NAMES) or not file.exists():
        return run
    return merged(run, json.loads(file.read_text()), SCENARIOS, CURVES)


def write_docs(run: Run, folder: Path) -> list[Path]:
    """Write page, numbers and plots; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "README.md", folder / "numbers.json"]
    files[0].write_text(page(run))
    files[1].write_text(_as_text(run))
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed here", file=sys.stderr)
        return files
    # The extra may be missing.
    from scripts.benchmarks.curve_plots import draw as draw_curve  # noqa: PLC0415
    from scripts.benchmarks.plots import draw  # noqa: PLC0415

    files += [file for result in run.results for file in draw(result, folder)]
    return files + [file for course in run.courses for file in draw_curve(course, folder)]


def redraw(folder: Path) -> int:
    """Write page and plots of the numbers in a folder anew; return the exit status."""
    file = folder / "numbers.json"
    if not file.exists():
        print(f"scripts/bench: no {file} to draw; measure first", file=sys.stderr)
        return EXIT_USAGE
    for written in write_docs(read(json.loads(file.read_text()), SCENARIOS, CURVES), folder):
        print(f"wrote {written}")
    return 0


def _as_text(run: Run) -> str:
    return json.dumps(as_object(run), indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = arguments(argv)
    if sys.platform != "linux":
        print("scripts/bench: reads CPU times as Linux gives them; run it there", file=sys.stderr)
        return EXIT_USAGE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    if options.redraw:
        return redraw(options.docs or DOCS)
    try:
        run = measure(options, Console(stderr=True))
    except BenchmarkError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    tell(run, Console())
    if options.json is not None:
        options.json.write_text(_as_text(run))
    folder = docs_of(options)
    if folder is not None:
        try:
            whole = with_before(run, options, folder)
        except BenchmarkError as error:
            print(f"scripts/bench: {folder} stays as it was: {error}", file=sys.stderr)
            return EXIT_USAGE
        for file in write_docs(whole, folder):
            print(f"wrote {file}")
    return 0 if run.is_good else EXIT_FAULTS


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(EXIT_INTERRUPTED)
