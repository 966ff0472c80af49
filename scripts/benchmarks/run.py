"""The command line of `scripts/bench`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from scripts.benchmarks.document import Run, as_object
from scripts.benchmarks.machine import machine, versions
from scripts.benchmarks.model import BenchmarkError, Scenario
from scripts.benchmarks.page import page
from scripts.benchmarks.processes import ROOT
from scripts.benchmarks.rounds import play
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.services import redis_binary
from scripts.benchmarks.table import tell

EXIT_FAULTS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
ROUNDS = 5
QUICK_ROUNDS = 3
MOST_ROUNDS = 100
MOST_UPDATES = 1_000_000
DOCS = ROOT / "docs" / "benchmarks"
SCENARIO_NAMES = [scenario.name for scenario in SCENARIOS]
CONTENDER_NAMES = list(
    dict.fromkeys(one.name for scenario in SCENARIOS for one in scenario.contenders)
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=(
            "Runs statebroker and what a user would pick instead, in turns, several rounds; "
            "checks that each reader's state is right; prints medians and ratios. Ends with 0 if "
            "every run counts, with 1 if not. Linux only."
        ),
        epilog=f"scenarios: {', '.join(SCENARIO_NAMES)}; contenders: {', '.join(CONTENDER_NAMES)}",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[*SCENARIO_NAMES, *CONTENDER_NAMES],
        metavar="NAME",
        help="only this scenario, or this contender; repeatable",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}"
    )
    parser.add_argument(
        "--rounds", type=_between(MOST_ROUNDS), metavar="N", help=f"(default: {ROUNDS})"
    )
    parser.add_argument(
        "--updates",
        type=_between(MOST_UPDATES),
        metavar="N",
        help="in each run of each contender; by default as many as take a second or more",
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
            "--only or changed by --updates; else nowhere)"
        ),
    )
    parser.add_argument("--no-docs", action="store_true", help="write no page")
    return parser.parse_args(argv)


def _between(most: int) -> Callable[[str], int]:
    def checked(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from 1 to {most:,}")
        return value

    checked.__name__ = "number"  # in argparse's words: invalid number value
    return checked


def measure(options: argparse.Namespace, console: Console) -> Run:
    """Play everything that is asked for.

    Raises:
        BenchmarkError: a server is missing.
    """
    server = options.server or ("redis" if shutil.which("redis-server") else "valkey")
    redis_binary(server)  # before anything runs
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    place, began = machine(), time.monotonic()
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    results = [
        play(
            scenario,
            only=[name for name in options.only if name in CONTENDER_NAMES],
            rounds=rounds,
            updates=options.updates,
            server=server,
            seed=options.seed,
            part=scenario.quick_part if options.quick else 1.0,
            say=lambda text: console.print(text, markup=False, highlight=False),
        )
        for scenario in scenarios_of(options.only)
    ]
    return Run(
        made=made,
        revision=revision(),
        machine=place,
        versions=versions(server),
        options={"rounds": rounds, "server": server, "seed": options.seed, "only": options.only},
        seconds=time.monotonic() - began,
        results=results,
    )


def scenarios_of(only: Sequence[str]) -> list[Scenario]:
    """Return the scenarios that names of scenarios and contenders leave."""
    scenarios = [name for name in only if name in SCENARIO_NAMES]
    contenders = {name for name in only if name in CONTENDER_NAMES}
    return [
        scenario
        for scenario in SCENARIOS
        if (not scenarios or scenario.name in scenarios)
        and (not contenders or contenders & {one.name for one in scenario.contenders})
    ]


def revision() -> str:
    """Return the commit, with "+" if files differ from it; says so if git does not know it."""
    try:
        done = subprocess.run(
            [shutil.which("git") or "git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return done.stdout.strip()


def docs_of(options: argparse.Namespace) -> Path | None:
    """Return where page and plots go, None for nowhere."""
    if options.no_docs:
        return None
    if options.docs is not None:
        return Path(options.docs)
    return None if options.only or options.updates else DOCS


def write_docs(run: Run, folder: Path) -> list[Path]:
    """Write page, numbers and plots; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "README.md", folder / "numbers.json"]
    files[0].write_text(page(run))
    files[1].write_text(_as_text(run))
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed here", file=sys.stderr)
        return files
    from scripts.benchmarks.plots import draw  # noqa: PLC0415 - the extra may be missing

    return files + [file for result in run.results for file in draw(result, folder)]


def _as_text(run: Run) -> str:
    return json.dumps(as_object(run), indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = arguments(argv)
    if sys.platform != "linux":
        print("scripts/bench: reads CPU times as Linux gives them; run it there", file=sys.stderr)
        return EXIT_USAGE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
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
        for file in write_docs(run, folder):
            print(f"wrote {file}")
    return 0 if run.is_good else EXIT_FAULTS


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(EXIT_INTERRUPTED)
