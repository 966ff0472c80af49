"""Write log lines on a thread of their own.

A write to a pipe that nobody reads, or to a terminal that is stopped, does not return. On the
thread of an event loop it would stop everything: a flush worker, and with it all replicas.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
from typing import Final

MAX_WAITING: Final = 10_000  # lines; some 2 MB
FLUSH_S: Final = 1.0


class LogThread(logging.Handler):
    """A handler that never waits: a daemon thread writes its lines to a descriptor.

    While nobody reads, `MAX_WAITING` lines are kept; newer ones are dropped, and their number is
    written once there is room. At the end of the process, lines get `FLUSH_S` seconds.

    Not a QueueHandler with a QueueListener: the listener's handler would hold a lock while it
    waits, and the shutdown of logging would wait for that.

    Args:
        formatter: makes a line of a record, on the thread that logs.
        descriptor: of a file, pipe or terminal; 2 is stderr.
    """

    def __init__(self, formatter: logging.Formatter, descriptor: int = 2) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line to the thread, or count it; the caller holds the lock of this handler."""
        try:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
                self._thread.start()
            self._lines.put_nowait(self.format(record) + "\n")
        except queue.Full:
            self._dropped += 1
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all lines are written, `FLUSH_S` seconds at most."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, FLUSH_S)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line += f"{dropped} newer lines were dropped: nobody read the log\n"
            _write(self._descriptor, line.encode(errors="backslashreplace"))
            self._lines.task_done()


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, however long that takes; give up if nobody can read it any more."""
    try:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                # Another process that has this terminal asked for it.
                select.select([], [descriptor], [])
    except OSError:
        # There is nowhere to say so.
        return
