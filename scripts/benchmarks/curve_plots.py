"""Pictures of curves, as SVG. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from scripts.benchmarks.curve import CurveResult, Panel
from scripts.benchmarks.plots import saved

COLOURS = ("#1b6ca8", "#bc4b51", "#5b8e7d", "#f4a259", "#7d5ba6", "#6b6b6b", "#2a9d8f")
DASHES = ("-", "--", ":", "-.")
WIDTH, HEIGHT = 5.4, 3.9
FEW_DECADES = 300


def draw(curve_result: CurveResult, folder: Path) -> Path:
    """Draw all panels of a curve side by side; return the file."""
    panels = curve_result.curve.panels
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH * len(panels), HEIGHT), layout="constrained", squeeze=False
    )
    for panel, one in zip(panels, axes[0], strict=True):
        _panel(one, curve_result, panel)
    return saved(figure, curve_result.curve.name, folder)


def _panel(axes: plt.Axes, curve_result: CurveResult, panel: Panel) -> None:
    curve = curve_result.curve
    drawn = 0
    for line, colour in zip(curve.lines, COLOURS, strict=False):
        if panel.lines and line.name not in panel.lines:
            continue
        for measure, dash in zip(panel.measures, DASHES, strict=False):
            xs, ys = curve_result.drawn(line.name, measure.name)
            if not xs:
                continue
            names = [line.title] if len(curve.lines) > 1 else []
            names += [measure.label] if len(panel.measures) > 1 else []
            label = ": ".join(names)
            axes.plot(xs, ys, dash, marker="o", markersize=4, color=colour, label=label)
            drawn += bool(label)
    if curve.is_log:
        axes.set_xscale("log")
        _label_plainly(axes.xaxis)
    if panel.is_log:
        axes.set_yscale("log")
        _label_plainly(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.9g}")
    over = {one.name: one.label for one in curve.measures}.get(curve.over, curve.axis.label)
    axes.set_xlabel(over)
    axes.set_title(panel.label, fontsize=10)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if drawn:
        axes.legend(frameon=False, fontsize=8)


def _label_plainly(axis: Axis) -> None:
    """Write 300 and not 3 x 10^2; on an axis of few decades also between them."""
    low, high = axis.get_view_interval()
    between = (1.0, 2.0, 5.0) if high < FEW_DECADES * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter("{x:,.9g}")
    axis.set_minor_formatter(NullFormatter())
