"""Pictures of a result, as SVG: small in git, sharp at any size. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from scripts.benchmarks.model import Result
from scripts.benchmarks.report import Row, rows

OURS, PEER = "#1b6ca8", "#b8b8b8"
ROLES = ("#1b6ca8", "#5aa9e6", "#f4a259", "#8cb369", "#bc4b51")


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw the headline, and the CPU time if it was measured; return the files."""
    found = rows(result)
    scenario = result.scenario
    files = []
    for name, paint in ((scenario.name, _headline), (f"{scenario.name}-cpu", _cpu)):
        if paint is _cpu and not result.roles:
            continue
        figure, axes = plt.subplots(figsize=(8, 0.55 * len(found) + 1.2), layout="constrained")
        paint(axes, found, result)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        files.append(saved(figure, name, folder))
    return files


def saved(figure: plt.Figure, name: str, folder: Path) -> Path:
    """Write a figure as SVG and close it; return the file. Equal figures give equal files."""
    # Dates and random ids would change the files of every run.
    mpl.rcParams["svg.hashsalt"] = name
    file = folder / f"{name}.svg"
    figure.savefig(file, dpi=150, metadata={"Date": None})
    plt.close(figure)
    return file


def _headline(axes: plt.Axes, found: list[Row], result: Result) -> None:
    headline = result.scenario.headline
    medians = [row.headline.median for row in found]
    whiskers = [
        [row.headline.median - row.headline.low for row in found],
        [row.headline.high - row.headline.median for row in found],
    ]
    colours = [OURS if row.contender.name == result.scenario.ours else PEER for row in found]
    bars = axes.barh(
        [row.contender.title for row in found], medians, xerr=whiskers, color=colours, capsize=3
    )
    axes.bar_label(bars, [f" {headline.shown(value)}" for value in medians], padding=4)
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    if not headline.digits:
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"{headline.label} (median; least to most of all rounds)")


def _cpu(axes: plt.Axes, found: list[Row], result: Result) -> None:
    titles = [row.contender.title for row in found]
    left = [0.0] * len(found)
    for role, colour in zip(result.roles, ROLES, strict=False):
        widths = [row.roles.get(role, 0.0) for row in found]
        axes.barh(titles, widths, left=left, color=colour, label=role)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, end in zip(found, left, strict=True):
        if row.cpu is not None:
            text = f" {row.cpu.median:,.0f}"
            axes.annotate(text, (end, row.contender.title), va="center", fontsize=9)
    axes.margins(x=0.12)
    axes.set_xlabel("CPU for one update, ns (medians; the number: all processes)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
