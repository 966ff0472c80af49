"""The command line of `scripts/faults`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from rich.console import Console

from broker.runtime.tasks import cancel_and_wait
from broker.testing.history import History, Violation
from broker.testing.validators import VALIDATORS
from tests.chaos.acting import Fault
from tests.chaos.damage.run import print_damage, run_damage
from tests.chaos.deployment import KINDS, Single, deployment
from tests.chaos.faults import FAULTS, faults_of
from tests.chaos.plan import Step, plan
from tests.chaos.report import (
    GOOD,
    InjectedFault,
    Outcome,
    as_object,
    describe_left_out,
    print_report,
    verdict,
)
from tests.chaos.testbed import Testbed

EXIT_VIOLATIONS = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
MAX_SEED = 10**6
WIDTH = 120


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults",
        description=(
            "Run the chaos suite: start a server, workers, producers and replicas, inject faults, "
            "and check the recorded history against the promises. Exit with 0 if all were kept, "
            "else with 1; a run of 10 minutes or more also exits with 1 if a fault had no effect "
            "or a way of recovery was not taken. Example: scripts/faults --minutes 5 --only "
            "server_kill. See docs/faults.md."
        ),
        epilog="faults: " + ", ".join(FAULTS),
    )
    parser.add_argument("--minutes", type=float, default=2.0, metavar="N", help="(default: 2)")
    parser.add_argument("--seed", type=int, help="seed of an earlier run, to repeat its faults")
    parser.add_argument(
        "--only",
        action="append",
        choices=FAULTS,
        metavar="FAULT",
        help="inject only this fault; may be repeated",
    )
    parser.add_argument(
        "--deployment",
        choices=KINDS,
        default="single",
        help="one server behind a proxy, a primary with two replicas and three Sentinels, or a "
        "Cluster of three primaries and their replicas (default: single)",
    )
    parser.add_argument(
        "--damage",
        action="store_true",
        help="instead, damage every key and field of a server of its own beside a running fleet, "
        "and require that it stays right or names what is wrong; a minute is enough",
    )
    parser.add_argument("--producers", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--replicas", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument(
        "--server", metavar="BINARY", help="run this server instead of the bundled Valkey"
    )
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and histories in DIR")
    options = parser.parse_args(argv)
    for fault in options.only or ():
        if fault not in faults_of(options.deployment):
            parser.error(f"fault {fault} does not exist for --deployment {options.deployment}")
    return options


async def inject(
    testbed: Testbed, faults: Mapping[str, Fault], steps: Sequence[Step]
) -> list[InjectedFault]:
    """Inject the faults at their times; return what happened once all are over."""
    began = monotonic()
    happened: list[InjectedFault] = []

    async def make(step: Step) -> None:
        await asyncio.sleep(max(0.0, began + step.at - monotonic()))
        start = monotonic()
        testbed.say(f"{start - began:6.1f} s  {step.fault}")
        had_effect = False
        try:
            had_effect = await faults[step.fault](testbed, step)
        except Exception as error:  # noqa: BLE001 - reported; one fault must not end the others
            testbed.crashed(f"fault {step.fault} could not be injected: {error!r}")
        happened.append(InjectedFault(step.fault, start, monotonic(), had_effect))

    await asyncio.gather(*(make(step) for step in steps))
    return sorted(happened, key=lambda one: one.start)


async def run_chaos(folder: Path, options: argparse.Namespace, console: Console) -> Outcome:
    """Run the chaos suite once, from start to outcome."""
    servers = deployment(options.deployment, folder, options.seed, options.server)
    faults = faults_of(options.deployment)
    left_out = servers.left_out
    for line in describe_left_out(left_out):
        print(f"scripts/faults: without {line}", file=sys.stderr)
    names = [name for name in options.only or faults if name not in left_out]
    steps = plan(options.seed, options.minutes * 60, names)
    began = monotonic()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    async with servers.running():
        testbed = Testbed(folder, servers, say)
        try:
            tasks = [asyncio.create_task(testbed.witness.run(), name="the witness")]
            testbed.add_all(
                producers=options.producers, replicas=options.replicas, seed=options.seed
            )
            tasks.append(asyncio.create_task(testbed.watch(), name="the process monitor"))
            if isinstance(servers, Single):
                tasks.append(asyncio.create_task(testbed.keep_copies(), name="the copy task"))
            if not await testbed.begin():
                testbed.crashed("the fleet did not start")
            happened = await inject(testbed, faults, steps)
            say("faults are off; waiting for convergence")
            unsettled = await testbed.settle()
            for task in tasks:
                if task.done():
                    testbed.crashed(f"{task.get_name()} ended before the run: {task.exception()!r}")
            # The Redis client may swallow one cancel.
            await cancel_and_wait(tasks)
        finally:
            await asyncio.to_thread(testbed.end)
    history = History(testbed.records())
    violations = [
        Violation(f"{name}: {violation}", violation.at)
        for name, validate in VALIDATORS.items()
        for violation in validate(history)
    ]
    violations += [Violation(f"process: {crash}", crash.at) for crash in testbed.crashes]
    violations += [Violation(f"end: {what}") for what in unsettled]
    return Outcome(
        options.seed,
        monotonic() - began,
        options.minutes * 60,
        history,
        happened,
        violations,
        names,
        left_out,
        servers.counts,
        recoveries_expected=options.only is None and not servers.has_replicas,
    )


def interrupted(_number: int, _frame: object) -> None:
    """Exit with cleanup, so that all processes are stopped."""
    raise SystemExit(EXIT_TERMINATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, and return the exit status."""
    options = arguments(argv)
    if options.seed is None:
        options.seed = random.randrange(MAX_SEED)
    signal.signal(signal.SIGTERM, interrupted)
    # A fixed width if the output is not a terminal.
    console = Console(quiet=options.json, width=None if sys.stdout.isatty() else WIDTH)
    console.print(f"seed {options.seed} (repeat with --seed {options.seed})", highlight=False)
    with contextlib.ExitStack() as exits:
        if options.keep is None:
            folder = Path(exits.enter_context(TemporaryDirectory(prefix="statebroker-faults-")))
        else:
            folder = options.keep.resolve()
            folder.mkdir(parents=True)
        try:
            if options.damage:
                say = partial(console.print, markup=False, highlight=False)
                seconds = options.minutes * 60
                report = run_damage(folder, options.seed, seconds, options.server, say)
                print_damage(report, as_json=options.json, say=say)
                return EXIT_VIOLATIONS if report.violations else 0
            outcome = asyncio.run(run_chaos(folder, options, console))
        except KeyboardInterrupt:
            print("scripts/faults: stopped", file=sys.stderr)
            return EXIT_INTERRUPTED
        if options.json:
            print(json.dumps(as_object(outcome)))
        else:
            print_report(console, outcome)
    return 0 if verdict(outcome) == GOOD else EXIT_VIOLATIONS


if __name__ == "__main__":
    sys.exit(main())
