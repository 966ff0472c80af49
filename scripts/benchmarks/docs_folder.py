"""The folder that `--docs` names: the page, all numbers as JSON, and a picture of each part."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from scripts.benchmarks.archive import merged, read
from scripts.benchmarks.curves import CURVES
from scripts.benchmarks.goals import GOALS
from scripts.benchmarks.grids import GRIDS
from scripts.benchmarks.measure import CELL_NAMES, CONTENDER_NAMES
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.page import page
from scripts.benchmarks.report import Report, as_object
from scripts.benchmarks.scenarios import SCENARIOS

NUMBERS = "numbers.json"


def as_text(report: Report) -> str:
    """Return the report as one JSON object, with the targets that it reaches."""
    targets = [goal.as_object(report) for goal in GOALS]
    return json.dumps({**as_object(report), "targets": targets}, indent=1) + "\n"


def with_earlier_numbers(report: Report, options: argparse.Namespace, folder: Path) -> Report:
    """Return the report with the numbers in the folder that this command did not measure again.

    Raises:
        BenchmarkError: they do not belong on one page.
    """
    file = folder / NUMBERS
    if not options.only or set(options.only) & {*CONTENDER_NAMES, *CELL_NAMES} or not file.exists():
        return report
    return merged(report, json.loads(file.read_text()), SCENARIOS, CURVES, GRIDS)


def write(report: Report, folder: Path) -> list[Path]:
    """Write page, numbers and pictures; return the files. Equal reports give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "README.md", folder / NUMBERS]
    files[0].write_text(page(report))
    files[1].write_text(as_text(report))
    if importlib.util.find_spec("matplotlib") is None:
        print("no pictures: matplotlib is not installed here", file=sys.stderr)
        return files
    # The extra may be missing.
    from scripts.benchmarks.curve_plots import draw as draw_curve  # noqa: PLC0415
    from scripts.benchmarks.plots import draw  # noqa: PLC0415

    files += [file for result in report.results for file in draw(result, folder)]
    return files + [draw_curve(curve_result, folder) for curve_result in report.curve_results]


def redraw(folder: Path) -> list[Path]:
    """Write page and pictures again from the numbers in a folder; return the files.

    Raises:
        BenchmarkError: there are no numbers.
    """
    file = folder / NUMBERS
    if not file.exists():
        raise BenchmarkError(f"no {file} to draw; measure first")
    return write(read(json.loads(file.read_text()), SCENARIOS, CURVES, GRIDS), folder)
