"""The cost curves; one file each, listed here."""

from __future__ import annotations

from scripts.benchmarks.curves.chunk import CHUNK
from scripts.benchmarks.curves.latency import LATENCY
from scripts.benchmarks.curves.load import LOAD
from scripts.benchmarks.curves.nodes import NODES
from scripts.benchmarks.curves.snapshot import SNAPSHOT
from scripts.benchmarks.curves.state import STATE
from scripts.benchmarks.curves.subscribers import SUBSCRIBERS
from scripts.benchmarks.curves.value import VALUE

CURVES = (CHUNK, NODES, SUBSCRIBERS, STATE, VALUE, LATENCY, SNAPSHOT, LOAD)
