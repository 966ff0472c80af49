"""Log lines are written on a thread of their own, whoever reads them."""

from __future__ import annotations

import logging
import os
import time
from threading import Thread

import pytest

from broker.runtime import log_thread
from broker.runtime.log_thread import LogThread
from broker.testing.waiting import eventually


def record(text: str) -> logging.LogRecord:
    """Return a record with this message."""
    return logging.LogRecord("broker", logging.INFO, "", 0, text, (), None)


def test_lines_come_in_order_and_what_had_no_room_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logging never waits; the number of lines that were dropped comes behind those kept."""
    monkeypatch.setattr(log_thread, "MAX_WAITING", 100)
    monkeypatch.setattr(log_thread, "FLUSH_S", 0.05)
    read, written = os.pipe()
    handler = LogThread(logging.Formatter("%(message)s"), written)
    began = time.monotonic()
    for number in range(500):
        handler.handle(record(f"{number:05} " + "x" * 1000))
    assert time.monotonic() - began < 5
    before = time.monotonic()
    handler.flush()
    assert time.monotonic() - before < 5
    reader = Thread(target=lambda: lines.extend(_all(read)))
    lines: list[str] = []
    reader.start()
    eventually(lambda: not handler._lines.unfinished_tasks, 10)
    os.close(written)
    reader.join()
    kept = [int(line.split()[0]) for line in lines if line.endswith("x")]
    told = [line.split()[0] for line in lines if line.endswith("were dropped: nobody read the log")]
    assert kept == sorted(set(kept))
    assert len(kept) >= 100
    # More than one number, if there was room for a line in between.
    assert sum(map(int, told)) == 500 - len(kept)


def _all(descriptor: int) -> list[str]:
    with os.fdopen(descriptor) as pipe:
        return pipe.read().splitlines()


def test_a_log_that_cannot_be_written_is_no_error() -> None:
    """As when its reader ended."""
    read, written = os.pipe()
    os.close(read)
    handler = LogThread(logging.Formatter("%(message)s"), written)
    for _ in range(3):
        handler.handle(record("x"))
    handler.flush()
    assert not handler._lines.unfinished_tasks
    os.close(written)
