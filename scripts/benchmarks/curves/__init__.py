"""The cost curves; one file each, listed here."""

from __future__ import annotations

from scripts.benchmarks.curves.chunk import CHUNK
from scripts.benchmarks.curves.state import STATE
from scripts.benchmarks.curves.subscribers import SUBSCRIBERS
from scripts.benchmarks.curves.value import VALUE

CURVES = (CHUNK, SUBSCRIBERS, STATE, VALUE)
