"""What the commands print, and how: the only module that writes to stdout and stderr.

Texts of others are escaped here, so that no key, value, name or error of a server can move the
cursor, forge a line, or show a text as another one. Output is written at once and not through a
buffer: a buffer that waits for a reader who pauses would keep the process from its end.
"""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TextIO

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

MIN_COLUMNS: Final = 40  # in fewer, a table cannot be read
COLUMNS: Final = 80  # where nothing says how many there are

# Control characters (C0, DEL, C1), line separators, marks that reorder text, lone surrogates, and
# what is not shown at all.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\uffff\U000e0000-\U000e007f]"
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe(text: str) -> str:
    """Return a text with each unsafe character as JSON escapes it; within JSON it stays JSON."""
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    short = _SHORT.get(found[0])
    # JSON has no escapes beyond four digits, but pairs of them.
    units = found[0].encode("utf-16-be", "surrogatepass")
    return short or "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def say(*fields: object) -> None:
    """Print a line on stdout: the fields, each escaped, with tabs between them."""
    _write(sys.stdout, "\t".join(safe(str(field)) for field in fields) + "\n")


def tell(text: str) -> None:
    """Print a message on stderr, escaped, after the name of the program."""
    _write(sys.stderr, f"statebroker: {safe(text)}\n")


def cell(text: object, style: str = "") -> Text:
    """Return a text for a table or a line of `show`: escaped, and never read as markup."""
    return Text(safe(str(text)), style=style)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table of texts, each escaped."""
    made = Table(*titles)
    for row in rows:
        made.add_row(*(one if isinstance(one, Text) else cell(one) for one in row))
    return made


def show(*parts: RenderableType, wraps: bool = True) -> None:
    """Print texts of `cell` and tables of `table` on stdout, as wide as the terminal is.

    Args:
        parts: one under the other.
        wraps: whether texts are wrapped into the width.
    """
    # Not COLUMNS as rich reads it: 0 would print nothing.
    width = max(MIN_COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns)
    console = Console(width=width, soft_wrap=not wraps, highlight=False)
    with console.capture() as printed:
        for part in parts:
            console.print(part)
    _write(sys.stdout, printed.get())


class Fault(click.ClickException):
    """An error that ends the command: one line on stderr, escaped."""

    def show(self, file: Any = None) -> None:
        """Print it."""
        _write(file or sys.stderr, f"Error: {safe(self.message)}\n")


class Stopped(BaseException):
    """A signal ended the command while its output waited for the reader."""


class StopOnSignals:
    """Ends a command on SIGINT or SIGTERM, also while its output waits; a second one kills it.

    Args:
        end: called in the signal handler; it must not wait.

    Attributes:
        is_requested: whether a signal arrived.
    """

    def __init__(self, end: Callable[[], object]) -> None:
        self.is_requested = False
        self._end = end
        self._is_writing = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.is_requested = True
        signal.signal(number, signal.SIG_DFL)
        self._end()
        if self._is_writing:
            raise Stopped

    def while_written(self, write: Callable[[], object]) -> None:
        """Call a function that writes.

        Raises:
            Stopped: a signal arrived before its end.
        """
        self._is_writing = True
        if self.is_requested:
            raise Stopped
        try:
            write()
        finally:
            self._is_writing = False


def accept_any_terminal() -> None:
    """Let a terminal that lacks a character show its escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # replaced by something that is no file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _write(stream: TextIO | None, text: str) -> None:
    """Write all of a text.

    Raises:
        Fault: it cannot be written, as on a full disk.
        BrokenPipeError: nobody reads any more.
    """
    if stream is None:  # closed by who started the command
        return
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by something that is no file
        stream.write(text)
        return
    data = text.encode(stream.encoding or "utf-8", "backslashreplace")
    try:
        stream.flush()
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                # Another process that has this terminal asked for it.
                select.select([], [descriptor], [])
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise Fault(f"cannot write the output: {error.strerror}") from None
