"""Notice that a keeper died while this process is attached to it.

One daemon thread waits for the ends of all connections to keepers, as long as there are any.
"""

from __future__ import annotations

import os
import select
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from socket import socket, socketpair
from typing import Protocol

from broker.embedded.location import EmbeddedDir


class Watched(Protocol):
    """What is attached to a keeper."""

    connection: socket
    location: EmbeddedDir

    def restore(self) -> None:
        """Attach again; called on the thread of the watcher, and may wait."""


class Watcher:
    """Calls `restore` of each attachment whose keeper closed the connection."""

    def __init__(self) -> None:
        self._attachments: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._bell: tuple[socket, socket] | None = None

    def add(self, attachment: Watched) -> None:
        """Watch an attachment until it is removed, or collected."""
        # A finalizer may only wake the thread: it runs anywhere, maybe within this lock.
        weakref.finalize(attachment, self._wake).atexit = False
        attachment.connection.setblocking(False)  # noqa: FBT003 - the only form
        with self._lock:
            self._attachments.add(attachment)
            if self._thread is None:
                self._bell = socketpair()
                for end in self._bell:
                    end.setblocking(False)  # noqa: FBT003
                self._thread = threading.Thread(target=self._run, name="keepers", daemon=True)
                self._thread.start()
        self._wake()

    def remove(self, attachment: Watched) -> None:
        """Watch it no more; its connection may be closed then."""
        with self._lock:
            self._attachments.discard(attachment)
        self._wake()

    def any(self, condition: Callable[[Watched], bool]) -> bool:
        """Whether one of the attachments fulfils a condition."""
        with self._lock:
            return any(map(condition, self._attachments))

    def close_bell(self) -> None:
        """Close what wakes the thread, which has ended or is another process's."""
        for end in self._bell or ():
            end.close()
        self._bell = None

    def _wake(self) -> None:
        bell = self._bell
        if bell is not None:
            with suppress(OSError):  # full: it wakes anyway; or closed meanwhile
                bell[1].send(b".")

    def _run(self) -> None:
        while True:
            with self._lock:
                # While it waits, only the set refers to the attachments.
                waiting = {one.connection.fileno() for one in self._attachments}
                if self._bell is None or not waiting:
                    self.close_bell()
                    self._thread = None
                    return
                bell = self._bell[0]
            poll = select.poll()
            for descriptor in {bell.fileno(), *waiting} - {-1}:
                poll.register(descriptor, select.POLLIN)
            poll.poll()
            with suppress(BlockingIOError):
                bell.recv(1024)
            with self._lock:
                lost = [one for one in self._attachments if has_ended(one.connection)]
            while lost:
                lost.pop().restore()


def has_ended(connection: socket) -> bool:
    """Whether the other side closed a non-blocking connection; false if it is closed here."""
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    except OSError:
        return False


watcher = Watcher()


def _start_anew() -> None:
    """In a forked child, leave the attachments to the parent: their keeper knows only that one."""
    global watcher  # noqa: PLW0603 - the thread and the lock are the parent's
    watcher.close_bell()
    watcher = Watcher()


os.register_at_fork(after_in_child=_start_anew)
