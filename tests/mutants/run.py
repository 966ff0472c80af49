"""The command line of `scripts/mutations`."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import click
from rich.console import Console
from rich.table import Table

from tests.mutants.mutation import (
    PROMISES,
    PYTEST_PASSED,
    TABLE,
    Mutation,
    TableError,
    Verdict,
    first_failure,
    load,
    verdict_of,
)
from tests.mutants.tree import Tree, TreeError, files_of

ROOT = Path(__file__).parents[2]
EXIT_SURVIVED = 1
EXIT_BASELINE = 2
EXIT_TERMINATED = 143
STYLES = {Verdict.RED: "green", Verdict.HUNG: "green", Verdict.SURVIVED: "bold red"}


class BaselineError(Exception):
    """Tests fail without any break; holds the output of pytest."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one mutation.

    Attributes:
        mutation: the break.
        verdict: of its test.
        seconds: duration of the test.
        reported: the first line of the summary of pytest, with the failure.
    """

    mutation: Mutation
    verdict: Verdict
    seconds: float
    reported: str


async def check_baseline(tree: Tree, tests: Sequence[str], jobs: int) -> None:
    """Run all named tests without a break.

    Raises:
        BaselineError: not all are green, or one does not exist.
    """
    processes = ("-n", str(jobs), "--dist", "worksteal")
    ran = await tree.run([*processes, *tests], None)
    if ran.status != PYTEST_PASSED:
        raise BaselineError(ran.output)


async def examine(
    mutations: Sequence[Mutation],
    *,
    jobs: int,
    timeout: float,  # noqa: ASYNC109 - of each test
    say: Callable[[str], None],
) -> list[Finding]:
    """Apply one mutation after the other in copies of the project; return the results in order.

    Args:
        mutations: the mutations.
        jobs: number of copies used at once.
        timeout: seconds for each test; a mutation may make it hang.
        say: prints progress.

    Raises:
        BaselineError: the tests are not green before anything is broken.
        TreeError: the project cannot be copied.
    """
    findings: dict[Mutation, Finding] = {}
    waiting = list(reversed(mutations))
    tests = sorted({one.test for one in mutations})

    async def work(tree: Tree) -> None:
        while waiting:
            mutation = waiting.pop()
            began = monotonic()
            ran = await tree.run_broken(mutation, timeout)
            verdict, seconds = verdict_of(ran.status), monotonic() - began
            findings[mutation] = Finding(mutation, verdict, seconds, first_failure(ran.output))
            say(
                f"[{len(findings):3d}/{len(mutations)}] {seconds:5.1f} s  {verdict}: "
                f"{mutation.promise}: {mutation.breaks}"
            )

    with TemporaryDirectory(prefix="statebroker-mutations-") as folder:
        files = files_of(ROOT)
        trees = [Tree(ROOT, files, Path(folder) / f"tree-{number}") for number in range(jobs)]
        say(f"{len(tests)} tests, nothing broken yet ...")
        await check_baseline(trees[0], tests, jobs)
        say(f"all green; {len(mutations)} breaks, one by one ...")
        async with asyncio.TaskGroup() as group:
            for tree in trees:
                group.create_task(work(tree))
    return [findings[one] for one in mutations]


def as_object(findings: Sequence[Finding], seconds: float) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "mutations": [
            asdict(one.mutation)
            | {"verdict": one.verdict, "seconds": round(one.seconds, 1), "told": one.reported}
            for one in findings
        ],
        "survived": sum(not one.verdict.is_noticed for one in findings),
        "seconds": round(seconds, 1),
    }


def show(console: Console, findings: Sequence[Finding], seconds: float) -> None:
    """Print the table, and below it the mutations that no test noticed."""
    table = Table("promise", "what was broken", title="Deliberate breaks")
    table.add_column("test", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for before, one in zip([None, *findings], findings, strict=False):
        is_first = before is None or before.mutation.promise != one.mutation.promise
        if is_first and before is not None:
            table.add_section()
        table.add_row(
            one.mutation.promise if is_first else "",
            one.mutation.breaks,
            one.mutation.test.removeprefix("tests/"),
            f"[{STYLES.get(one.verdict, 'bold yellow')}]{one.verdict}[/]",
        )
    console.print(table)
    missed = [one for one in findings if not one.verdict.is_noticed]
    for one in missed:
        console.print(
            f"{one.verdict}: {one.mutation.file}: {one.mutation.breaks}; "
            f"{one.mutation.test} does not fail. {one.reported}",
            markup=False,
        )
    noticed = len(findings) - len(missed)
    console.print(f"{noticed} of {len(findings)} breaks turned a test red, {seconds:.0f} s")


def terminated(_number: int, _frame: object) -> None:
    """Exit with cleanup, so that pytest is stopped and the copies are removed."""
    raise SystemExit(EXIT_TERMINATED)


@click.command(name="scripts/mutations")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(PROMISES),
    help="Only mutations of this promise; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=2, help="Number of tests at once (default: 2)."
)
@click.option(
    "--timeout",
    type=click.FloatRange(1.0),
    default=60.0,
    help="Seconds for each test; one that hangs counts as red (default: 60).",
)
@click.option(
    "--table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=TABLE,
    help="Read the mutations from FILE instead of tests/mutants/table.toml.",
)
def main(only: tuple[str, ...], jobs: int, timeout: float, table: Path, *, as_json: bool) -> None:
    """Break the code on purpose, promise by promise, and check that a test fails each time.

    It works in temporary copies of the project: first all named tests run without a break, then
    each with one break. Exit with 0 if every break was noticed, with 1 if one was not, with 2 if
    the tests fail without a break or the table does not match the code.
    """
    signal.signal(signal.SIGTERM, terminated)
    progress = Console(stderr=True)
    began = monotonic()
    try:
        mutations = [one for one in load(table) if not only or one.promise in only]
        for one in mutations:
            one.applied((ROOT / one.file).read_text())
        findings = asyncio.run(
            examine(
                mutations,
                jobs=jobs,
                timeout=timeout,
                say=lambda line: progress.print(
                    line, markup=False, highlight=False, soft_wrap=True
                ),
            )
        )
    except (TableError, TreeError) as error:
        click.echo(f"scripts/mutations: {error}", err=True)
        sys.exit(EXIT_BASELINE)
    except BaselineError as error:
        click.echo(f"{error}\nscripts/mutations: red with nothing broken, see above", err=True)
        sys.exit(EXIT_BASELINE)
    seconds = monotonic() - began
    if as_json:
        click.echo(json.dumps(as_object(findings, seconds)))
    else:
        show(Console(), findings, seconds)
    sys.exit(EXIT_SURVIVED if any(not one.verdict.is_noticed for one in findings) else 0)


if __name__ == "__main__":
    main()
