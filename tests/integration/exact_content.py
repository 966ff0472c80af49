"""Compares contents bit by bit, since in Python 1, 1.0 and True are equal and NaN is not NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.protocol.codec import pack_value


def packed(content: Mapping[str, Any]) -> dict[str, bytes]:
    """Return a content with every value as its bytes on the wire."""
    return {key: pack_value(value) for key, value in content.items()}
