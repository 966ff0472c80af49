"""The feature words of a namespace: which of them this program knows, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from broker.protocol import frames

COMPRESS: Final = "compress"

# The words of `FEATURES` that are built, and that this program can do: without a library for it, it
# neither reads nor writes compressed chunks.
KNOWN_FEATURES: Final[frozenset[str]] = frozenset({COMPRESS} if frames.is_available() else ())
# Those of a namespace that nobody asked for words.
NEW_FEATURES: Final[tuple[str, ...]] = tuple(sorted(KNOWN_FEATURES))
# Word -> the package without which it is not known.
PACKAGES: Final = {COMPRESS: frames.PACKAGE}

MAX_TEXT_BYTES: Final = 1024
_TEXT: Final = re.compile(rb"[a-z0-9_-]+(?: [a-z0-9_-]+)*")


def words_in(text: bytes) -> tuple[str, ...] | None:
    """Return the words that a config hash names; None if its text cannot be read.

    They are in alphabetical order, each once, with one space between: a set has one text.
    """
    if not text:
        return ()
    if len(text) > MAX_TEXT_BYTES or not _TEXT.fullmatch(text):
        return None
    words = tuple(text.decode().split(" "))
    return words if list(words) == sorted(set(words)) else None


def text_of(words: Sequence[str]) -> str:
    """Return the text of a set of words."""
    return " ".join(sorted(set(words)))


def unknown_in(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words that this program does not know."""
    return tuple(word for word in words if word not in KNOWN_FEATURES)
