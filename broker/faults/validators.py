"""The old name of `broker.testing.validators`; it goes with version 1.0."""

from typing import Any
from warnings import warn

from broker.testing import validators


def __getattr__(name: str) -> Any:
    """Load a name from its new home, with a warning."""
    warn(
        "broker.faults.validators is now broker.testing.validators; the old name goes with "
        "version 1.0",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(validators, name)
