"""The optional extension in C, for the tests that compare it with its twins in Python."""

from __future__ import annotations

from typing import Any

import pytest

from broker.speedups import native

ALONE = "extension"  # the name of its way in parameters


def compiled() -> Any:
    """Return the extension; skip the test where it was not built."""
    if native is None:
        pytest.skip("broker.speedups._native was not built here, or STATEBROKER_PURE_PYTHON is set")
    return native
