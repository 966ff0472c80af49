"""Dictionaries for compressed chunks, as they lie in Redis. No I/O."""

from __future__ import annotations

from typing import Final

from broker.protocol.constants import CHECK_BYTES
from broker.protocol.frames import is_usable, number_in
from broker.protocol.sums import check_of

MAX_DICTIONARIES: Final = 8  # that a namespace keeps


def content_of(number: int, dictionary: bytes) -> bytes:
    """Return the field of a dictionary in the hash `dicts`."""
    return check_of(dictionary, str(number).encode()) + dictionary


def dictionary_of(number: int, content: bytes | None) -> bytes | None:
    """Return the dictionary in a field; None if there is none, or it is damaged.

    Anybody can compute the check: what no frame can be made with is damaged, too.
    """
    if content is None or content[:CHECK_BYTES] != check_of(
        content[CHECK_BYTES:], str(number).encode()
    ):
        return None
    dictionary = content[CHECK_BYTES:]
    return dictionary if number_in(dictionary) == number and is_usable(dictionary) else None
