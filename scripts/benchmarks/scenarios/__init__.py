"""The scenarios; one module each, listed here."""

from __future__ import annotations

from scripts.benchmarks.scenarios.latency import AT_ONCE, BY_AGE
from scripts.benchmarks.scenarios.limit import LIMIT
from scripts.benchmarks.scenarios.load import LOAD
from scripts.benchmarks.scenarios.numbers import NUMBERS
from scripts.benchmarks.scenarios.throughput import THROUGHPUT

SCENARIOS = (THROUGHPUT, NUMBERS, AT_ONCE, BY_AGE, LOAD, LIMIT)
