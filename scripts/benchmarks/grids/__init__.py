"""The grids; one module each, listed here."""

from __future__ import annotations

from scripts.benchmarks.grids.reads import READS
from scripts.benchmarks.grids.shapes import CHANGES, STATE

GRIDS = (STATE, CHANGES, READS)
