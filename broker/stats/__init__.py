"""Typed statistics of producers, replicas, workers, shards and nodes, as frozen values.

Counters grow over the life of the object that counts (or of the namespace, where Redis counts) and
never shrink. Gauges are values of the moment at which they were read. Each class's docstring
documents every field; docs/statistics.md holds the same tables.

Each is loaded when it is first used: a producer needs one class of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.stats.base import Statistics
    from broker.stats.namespace import (
        NamespaceStatus,
        NodeStats,
        ServerInfo,
        ShardStats,
        WorkerStatus,
    )
    from broker.stats.producer import ProducerStats
    from broker.stats.replica import ReplicaStats
    from broker.stats.workers import (
        FlushShardStats,
        FlushWorkerStats,
        SchedulerShardStats,
        SchedulerStats,
    )

_HOME = {
    "FlushShardStats": "workers",
    "FlushWorkerStats": "workers",
    "NamespaceStatus": "namespace",
    "NodeStats": "namespace",
    "ProducerStats": "producer",
    "ReplicaStats": "replica",
    "SchedulerShardStats": "workers",
    "SchedulerStats": "workers",
    "ServerInfo": "namespace",
    "ShardStats": "namespace",
    "Statistics": "base",
    "WorkerStatus": "namespace",
}

__all__ = [
    "FlushShardStats",
    "FlushWorkerStats",
    "NamespaceStatus",
    "NodeStats",
    "ProducerStats",
    "ReplicaStats",
    "SchedulerShardStats",
    "SchedulerStats",
    "ServerInfo",
    "ShardStats",
    "Statistics",
    "WorkerStatus",
]


def __getattr__(name: str) -> Any:
    """Load a class of statistics."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
