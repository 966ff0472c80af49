"""The page about a report, in Markdown: method, numbers, limits and machine; no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.benchmarks.curve_section import section
from scripts.benchmarks.goals import NOTE, goals
from scripts.benchmarks.grid_tables import RATIO_NOTE, Sheet, grid_of, whole_sheet
from scripts.benchmarks.model import Provenance, Result
from scripts.benchmarks.report import Report, Row, rows
from scripts.benchmarks.table import times
from scripts.benchmarks.targets import target_lines

HEAD = """\
# How fast

<!-- Written by scripts/bench; change it there. -->

statebroker and what a user would pick instead, measured on the same machine, in the same minutes,
by the same code. One command makes the environment, starts every server and prints the numbers:

    scripts/bench --quick                          # the comparison, rough, in about a minute
    scripts/bench --only statebroker --only zeromq # two contenders
    scripts/bench --docs docs/benchmarks           # everything, and this page; 40 minutes
    scripts/bench --only targets --docs docs/benchmarks      # all that has a target; 25 minutes
    scripts/bench --only curve-load --docs docs/benchmarks   # one part of this page

**Read the ratios, not the rates.** A rate depends on the machine and its load; in a ratio both
sides were measured there, one right after the other. The raw numbers of every run are in
[numbers.json](numbers.json).
"""

GOALS_HEAD = """\
## The targets of protocol version 3

Ratios of medians, how many times better ours is, or what costs how many times as much. The peers
write and read the same values.
"""

TARGETS_HEAD = """\
## The first targets

Targets that were set for floats before measuring, and the results. Ratios of throughput are the
medians of the tables below.
"""

METHOD = """\
## How it was measured

* Every run starts processes of its own (servers, our worker, one reader, one writer) in a new
  temporary folder, and ends them. No run depends on another.
* Contenders take turns: each runs once per round, in an order that is shuffled for every round
  (seed {seed}). A ratio compares two runs of the same round; the table shows the median of these
  ratios, with the least and the most. Points of a curve are measured in a shuffled order, too.
* Everything runs on one machine, over unix sockets; NATS and Redis Cluster, which have none, over
  loopback TCP. Our runs and those of HSET and XADD use the same server program with the same
  options.
* Nothing is persisted: the server has neither append-only file nor dumps, the NATS bucket is in
  memory.
* The sources of all contenders are short: [contenders](../../scripts/benchmarks/contenders).
  Faster versions are welcome.
"""

CURVES = """\
# What it costs

How costs grow with load and size. Every point is one run with processes of its own, and counts only
if every subscriber's final state is right.
"""

LIMITS = """\
## Limits

* Throughput is that of a writer that never pauses. It says nothing about latency: with default
  settings an update of ours waits up to `local_delta_max_age` (50 ms) for its batch; with bare
  ZeroMQ, NATS or PUBLISH it does not. That is the trade-off. Without batching ours still has one
  hop more than PUBLISH, our worker; see the latency.
* Latencies of a few milliseconds depend on the machine as much as on us: where more processes are
  runnable than there are cores, each waits for its turn, and p99 consists of that.
* The contenders' guarantees differ. ZeroMQ has no state for late joiners, and loses what a full or
  broken connection held; PUBLISH loses, without notice, what a disconnected subscriber misses;
  XREAD resumes, but has no full state; NATS KV acknowledges and can store each put on disk. Ours
  are listed in the README.
* One writer, one reader, one server, on one machine with {cores} cores that all of them share. No
  network, no TLS. Keys of 13 bytes and floats, no large values.
* Python on both ends: Go or Rust clients of NATS or ZeroMQ are much faster than those for Python.
* Three rounds are few: read a ratio near 1 as "equal". A point of a curve is one run unless its
  table says otherwise.
"""


def page(report: Report) -> str:
    """Return the whole page."""
    parts = [HEAD]
    parts += [_grid_section(result) for result in report.grids]
    parts += [GOALS_HEAD, "\n".join([*_sheet(goals(report)), "", NOTE, ""])]
    parts += [TARGETS_HEAD, "\n".join([*target_lines(report), ""])]
    parts += [_section(result) for result in report.results]
    if report.curve_results:
        parts.append(CURVES)
    parts += [
        "\n".join([*section(curve_result), _provenance(curve_result.provenance), ""])
        for curve_result in report.curve_results
    ]
    parts.append(METHOD.format(seed=report.options["seed"]))
    parts.append(LIMITS.format(cores=report.machine["cores"]))
    parts.append(_environment(report))
    return "\n".join(parts)


def _provenance(provenance: Provenance) -> str:
    rounds = "one round" if provenance.rounds == 1 else f"{provenance.rounds} rounds"
    return (
        f"Measured {provenance.at} at {provenance.revision}: {rounds} in "
        f"{provenance.seconds:.0f} s; load average of the machine before: {provenance.load:.1f}."
    )


def _grid_section(result: Result) -> str:
    grid = grid_of(result)
    titles = {one.peer: one for one in reversed(grid.contenders)}
    lines = [f"## {grid.title}", "", grid.method]
    lines += ["", *_sheet(whole_sheet(result)), "", RATIO_NOTE, ""]
    lines += [f"* **{peer}**: {titles[peer].title}; {titles[peer].how}" for peer in grid.peers]
    lines += [f"\n{name} was skipped: {why}" for name, why in result.skipped.items()]
    lines += ["", *_faults(result), _provenance(result.provenance), ""]
    return "\n".join(lines)


def _sheet(sheet: Sheet) -> list[str]:
    """Return a table of a grid in Markdown."""
    lines = [
        f"| {' | '.join([sheet.head, *(title for title, _ in sheet.columns)])} |",
        f"|---|{'--:|' * len(sheet.columns)}",
    ]
    for number, name in enumerate(sheet.rows):
        first = f"**{name}**" if number in sheet.stressed else name
        cells = [column[number] for _, column in sheet.columns]
        lines.append(f"| {' | '.join([first, *cells])} |")
    return lines


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
    lines += ["", "### Every run", "", *_raw(result), "", _provenance(result.provenance), ""]
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
    return [*lines, "", "(!): the rounds differ by more than half; the median is unreliable."]


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
    """Return the headline of each run, including those that do not count."""
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
    return lines + _faults(result)


def _faults(result: Result) -> list[str]:
    """Return what does not count, and why."""
    return [
        f"\nRound {sample.round} of {sample.contender} does not count:\n\n    "
        + sample.fault.replace("\n", "\n    ")
        for sample in result.faults
    ]


def _title(row: Row, result: Result) -> str:
    title = row.contender.title
    return f"**{title}**" if row.contender.name == result.scenario.ours else title


def _environment(report: Report) -> str:
    lines = ["## Machine and versions", ""]
    lines += [f"* {name}: {value}" for name, value in report.machine.items()]
    lines += [f"* {name} {value}" for name, value in report.versions.items()]
    return "\n".join([*lines, ""])
