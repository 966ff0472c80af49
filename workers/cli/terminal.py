"""What may be printed to a terminal of texts that other processes wrote."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import Final

# Control characters (C0, DEL, C1), line separators, marks that reorder text, lone surrogates: they
# could move the cursor, forge a line, or show a text as another one.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe(text: str) -> str:
    """Return a text with each unsafe character as JSON escapes it; within JSON it stays JSON."""
    return _UNSAFE.sub(lambda found: _SHORT.get(found[0], f"\\u{ord(found[0]):04x}"), text)


def accept_any_terminal() -> None:
    """Let a terminal that lacks a character show its escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # replaced by something that is no file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
