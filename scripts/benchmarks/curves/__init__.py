"""The cost curves; one module each, listed here."""

from __future__ import annotations

from scripts.benchmarks.curves.bandwidth import BY_AGE, BY_INTERVAL
from scripts.benchmarks.curves.chunk import CHUNK
from scripts.benchmarks.curves.fanout import FANOUT
from scripts.benchmarks.curves.latency import LATENCY
from scripts.benchmarks.curves.load import LOAD
from scripts.benchmarks.curves.nodes import NODES
from scripts.benchmarks.curves.primaries import PRIMARIES
from scripts.benchmarks.curves.recovery import LOSS, OUTAGE
from scripts.benchmarks.curves.snapshot import SNAPSHOT
from scripts.benchmarks.curves.state import STATE
from scripts.benchmarks.curves.subscribers import SUBSCRIBERS
from scripts.benchmarks.curves.value import VALUE

CURVES = (
    BY_AGE,
    BY_INTERVAL,
    CHUNK,
    NODES,
    SUBSCRIBERS,
    FANOUT,
    STATE,
    VALUE,
    LATENCY,
    SNAPSHOT,
    LOAD,
    OUTAGE,
    LOSS,
    PRIMARIES,
)
