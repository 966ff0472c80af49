"""Live shared state for Python fleets, over the Redis they already run.

`Producer` writes, `Replica` reads a live copy, `Inspector` looks at what Redis holds; the same
names with `await` are in `broker.aio`. Names are loaded when first used, so that `import broker`
is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from broker.errors import (
        AccessError,
        BackendError,
        BrokerError,
        BufferFullError,
        ChangesOverflowError,
        ClosedError,
        ConfigError,
        ConnectError,
        DataLostError,
        DecodeError,
        EmbeddedError,
        EncodeError,
        FencedError,
        FlushTimeoutError,
        ForkedError,
        NamespaceMismatchError,
        NotLoadedError,
        NotReplicatedError,
        NumpyMissingError,
        ReentrantError,
        ReplicaFailedError,
        StateFullError,
        TokenError,
        UnreadableValueError,
        UnsupportedServerError,
        WrongLoopError,
    )
    from broker.model import (
        ABSENT,
        Change,
        Difference,
        Health,
        Status,
        StatusChange,
        Token,
        Verification,
    )
    from broker.protocol.messages import Position
    from broker.stats.namespace import (
        NamespaceStatus,
        NodeStats,
        ServerInfo,
        ShardStats,
        WorkerStatus,
    )
    from broker.stats.producer import ProducerStats
    from broker.stats.replica import ReplicaStats
    from broker.sync.inspector import Inspector
    from broker.sync.producer import Producer
    from broker.sync.replica import Replica

_HOME = {
    "ABSENT": "model",
    "Change": "model",
    "Difference": "model",
    "Health": "model",
    "Inspector": "sync.inspector",
    "NamespaceStatus": "stats.namespace",
    "NodeStats": "stats.namespace",
    "Position": "protocol.messages",
    "Producer": "sync.producer",
    "ProducerStats": "stats.producer",
    "Replica": "sync.replica",
    "ReplicaStats": "stats.replica",
    "ServerInfo": "stats.namespace",
    "ShardStats": "stats.namespace",
    "Status": "model",
    "StatusChange": "model",
    "Token": "model",
    "Verification": "model",
    "WorkerStatus": "stats.namespace",
}

__all__ = [
    "ABSENT",
    "AccessError",
    "BackendError",
    "BrokerError",
    "BufferFullError",
    "Change",
    "ChangesOverflowError",
    "ClosedError",
    "ConfigError",
    "ConnectError",
    "DataLostError",
    "DecodeError",
    "Difference",
    "EmbeddedError",
    "EncodeError",
    "FencedError",
    "FlushTimeoutError",
    "ForkedError",
    "Health",
    "Inspector",
    "NamespaceMismatchError",
    "NamespaceStatus",
    "NodeStats",
    "NotLoadedError",
    "NotReplicatedError",
    "NumpyMissingError",
    "Position",
    "Producer",
    "ProducerStats",
    "ReentrantError",
    "Replica",
    "ReplicaFailedError",
    "ReplicaStats",
    "ServerInfo",
    "ShardStats",
    "StateFullError",
    "Status",
    "StatusChange",
    "Token",
    "TokenError",
    "UnreadableValueError",
    "UnsupportedServerError",
    "Verification",
    "WorkerStatus",
    "WrongLoopError",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in __all__:
        renamed = import_module("broker.errors").RENAMED
        if name not in renamed:
            raise AttributeError(f"module 'broker' has no attribute {name!r}")
        warn(
            f"broker.{name} is now broker.{renamed[name]}; the old name goes with version 1.0",
            DeprecationWarning,
            stacklevel=2,
        )
        name = renamed[name]
    return getattr(import_module(f"broker.{_HOME.get(name, 'errors')}"), name)
