"""The old name of `broker.testing`; it goes with version 1.0."""

from typing import Any
from warnings import warn

from broker import testing


def __getattr__(name: str) -> Any:
    """Load a name from its new home, with a warning."""
    warn(
        "broker.faults is now broker.testing; the old name goes with version 1.0",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(testing, name)
