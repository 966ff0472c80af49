"""The page about a run, in Markdown: what, how, on what, numbers, limits; no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.benchmarks.curve_page import section
from scripts.benchmarks.document import Row, Run, rows
from scripts.benchmarks.model import Made, Result
from scripts.benchmarks.table import times
from scripts.benchmarks.targets import target_lines

HEAD = """\
# How fast

<!-- Written by scripts/bench; change it there. -->

What statebroker does, done by what a user would pick instead, on the same machine, in the same
minutes, and by the same measuring code. One command makes the environment, starts every server,
runs it all and writes this page:

    scripts/bench            # all; --quick: fewer rounds and points, within three minutes
    scripts/bench --only statebroker --only zeromq --json numbers.json
    scripts/bench --only curve-load --docs docs/benchmarks    # this one anew, the others stay

**Read the ratios, not the numbers.** A number depends on the machine and on what else it does;
in a ratio both sides were measured there, one right after the other. The raw numbers of every
run are in [numbers.json](numbers.json).
"""

TARGETS_HEAD = """\
## The targets

What the project set itself before it measured, and what came out. Ratios of throughput are the
medians of the tables below.
"""

METHOD = """\
## How it was measured

* Every run starts its own processes: servers, our worker, one reader, one writer, in a new
  temporary directory; and ends them. So no run inherits anything from another.
* Contenders take turns: each plays once a round, in an order that is shuffled for every round
  (seed {seed}). A ratio is made of two runs of the same round; the table shows the median of these
  ratios, with the least and the most. Points of a curve are measured in a shuffled order, too.
* All is on one machine: unix sockets, and loopback TCP for NATS and Redis Cluster, which have
  none. Our runs and those of HSET and XADD use the same server program with the same options.
* Nothing is persisted: the server has neither append-only file nor dumps, the NATS bucket is in
  memory.
* Peers' sources are short, and beside ours: [contenders](../../scripts/benchmarks/contenders).
  Whoever knows a faster way to write one of them is welcome to show it.
"""

CURVES = """\
# What it costs

How the costs grow with what you may have more of. Every point is one run with processes of its own,
and counts only if every subscriber's final state is right.
"""

LIMITS = """\
## Limits

* Throughput is that of a writer that never pauses, and says nothing about the time that one update
  takes to become visible: with default settings ours waits up to `local_delta_max_age` (50 ms) to
  be batched, which bare ZeroMQ, NATS or PUBLISH do not. That is the trade. Even without a batch it
  has one hop more than PUBLISH, our worker; see the latency.
* Latency in the single milliseconds is as much the machine's as ours: where more processes want to
  run than there are cores, each waits for its turn, and p99 is made of that.
* The contenders do not promise the same. ZeroMQ has no state for who comes later, and loses what
  a full or broken connection held; PUBLISH loses what a subscriber that is away misses,
  unnoticed; XREAD resumes, but has no full state; NATS KV acknowledges and can store each put on
  disk. Ours gives what README's table says.
* One writer, one reader, one server, one machine with {cores} cores, on which all of them
  compete for the processor. No network, no TLS. Keys of 13 bytes and floats, not large values.
* Python on both ends: a Go or Rust client of NATS or ZeroMQ is much faster than theirs for
  Python.
* A few rounds are few: take a ratio near 1 as "equal". A point of a curve is one run unless its
  table says otherwise.
"""


def page(run: Run) -> str:
    """Return the whole page."""
    parts = [HEAD, TARGETS_HEAD, "\n".join([*target_lines(run), ""])]
    parts += [_section(result) for result in run.results]
    if run.courses:
        parts.append(CURVES)
    parts += ["\n".join([*section(course), _made(course.made), ""]) for course in run.courses]
    parts.append(METHOD.format(seed=run.options["seed"]))
    parts.append(LIMITS.format(cores=run.machine["cores"]))
    parts.append(_place(run))
    return "\n".join(parts)


def _made(made: Made) -> str:
    rounds = "one round" if made.rounds == 1 else f"{made.rounds} rounds"
    return (
        f"Made {made.at} at {made.revision}: {rounds} in {made.seconds:.0f} s; load of the machine "
        f"before: {made.load:.1f}."
    )


def _section(result: Result) -> str:
    scenario = result.scenario
    lines = [f"## {scenario.title}", "", scenario.method, ""]
    lines += [f"![{scenario.headline.label}]({scenario.name}.svg)", ""]
    lines += _table(rows(result), result)
    if result.roles:
        lines += ["", f"![CPU for one update]({scenario.name}-cpu.svg)", ""]
        lines += _cpu_table(rows(result), result.roles)
    lines += ["", "### The contenders", ""]
    lines += [f"* **{one.title}**: {one.how}" for one in scenario.contenders]
    lines += ["", "### Every run", "", *_raw(result), "", _made(result.made), ""]
    return "\n".join(lines)


def _table(found: Sequence[Row], result: Result) -> list[str]:
    headline, also = result.scenario.headline, result.scenario.also
    others = "".join(f" {one.label} |" for one in also)
    lines = [
        f"| | {headline.label}, median | least to most |{others} ours is (least to most) |",
        f"|---|--:|--:|--:|{'--:|' * len(also)}",
    ]
    for row in found:
        spread = f"{headline.shown(row.headline.low)} to {headline.shown(row.headline.high)}"
        spread += " (!)" if row.headline.is_noisy else ""
        cells = [_title(row, result), headline.shown(row.headline.median), spread]
        cells += [*(row.shown(one) for one in also), times(row.ratio)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "(!): the rounds differ by more than half, so the median says little."]


def _cpu_table(found: Sequence[Row], roles: Sequence[str]) -> list[str]:
    lines = [
        f"| CPU for one update, ns | {' | '.join(roles)} | all | x times ours |",
        f"|---|{'--:|' * (len(roles) + 2)}",
    ]
    for row in found:
        cells = [f"{row.roles[role]:,.0f}" if role in row.roles else "-" for role in roles]
        total = "-" if row.cpu is None else f"{row.cpu.median:,.0f}"
        ratio = "-" if row.cpu_ratio is None else f"{row.cpu_ratio.median:.2f}"
        lines.append(f"| {' | '.join([row.contender.title, *cells, total, ratio])} |")
    return lines


def _raw(result: Result) -> list[str]:
    """Return what each run gave, those that do not count included."""
    scenario = result.scenario
    numbers = sorted({sample.round for sample in result.samples})
    lines = [
        f"| {scenario.headline.label} | N | {' | '.join(f'round {one}' for one in numbers)} |",
        f"|---|--:|{'--:|' * len(numbers)}",
    ]
    for contender in scenario.contenders:
        if contender.name in result.skipped:
            lines.append(f"\n{contender.title} was skipped: {result.skipped[contender.name]}")
            continue
        mine = {one.round: one for one in result.samples if one.contender == contender.name}
        if not mine:
            continue
        cells = [
            scenario.headline.shown(mine[one].measures[scenario.headline.name])
            if not mine[one].fault
            else "does not count"
            for one in numbers
        ]
        updates = f"{mine[numbers[0]].updates:,}"
        lines.append(f"| {' | '.join([contender.title, updates, *cells])} |")
    return lines + [
        f"\nRound {sample.round} of {sample.contender} does not count:\n\n    "
        + sample.fault.replace("\n", "\n    ")
        for sample in result.faults
    ]


def _title(row: Row, result: Result) -> str:
    title = row.contender.title
    return f"**{title}**" if row.contender.name == result.scenario.ours else title


def _place(run: Run) -> str:
    lines = ["## On what", ""]
    lines += [f"* {name}: {value}" for name, value in run.machine.items()]
    lines += [f"* {name} {value}" for name, value in run.versions.items()]
    return "\n".join([*lines, ""])
