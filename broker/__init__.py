"""Live shared state for Python fleets, over the Redis they already run.

`Producer` writes, `Replica` reads a live copy, `Inspector` looks at what Redis holds; the same
names with `await` are in `broker.aio`. Names are loaded when first used, so that `import broker`
is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
        NumpyMissingError,
        ReplicaFailedError,
        ServerUnfitError,
        TokenError,
        UnconfirmedError,
    )
    from broker.inspector import Inspector
    from broker.model import (
        ABSENT,
        Change,
        Difference,
        Health,
        Position,
        Status,
        StatusChange,
        Token,
        Verification,
    )
    from broker.producer import Producer
    from broker.replica import Replica

_HOME = {
    "ABSENT": "model",
    "Change": "model",
    "Difference": "model",
    "Health": "model",
    "Inspector": "inspector",
    "Position": "model",
    "Producer": "producer",
    "Replica": "replica",
    "Status": "model",
    "StatusChange": "model",
    "Token": "model",
    "Verification": "model",
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
    "NumpyMissingError",
    "Position",
    "Producer",
    "Replica",
    "ReplicaFailedError",
    "ServerUnfitError",
    "Status",
    "StatusChange",
    "Token",
    "TokenError",
    "UnconfirmedError",
    "Verification",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'broker' has no attribute {name!r}")
    return getattr(import_module(f"broker.{_HOME.get(name, 'errors')}"), name)
