"""Attach this process to an embedded server, and start it if it does not run."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from broker.config import checked_name
from broker.embedded import watch
from broker.embedded.launch import KeeperConnection, connect, launch, starting
from broker.embedded.location import EmbeddedDir, remove_abandoned, unusable_dir_error
from broker.embedded.log import tail
from broker.errors import EmbeddedError
from broker.runtime.backoff import Backoff
from broker.runtime.outage_log import OutageLog

# Longer than a keeper takes to stop.
REACH_TIMEOUT_S = 30.0
REACH_PAUSE_S = 0.01
# Longer than the timeouts of the keeper for server and worker, whose errors are more precise.
REPLY_TIMEOUT_S = 120.0
RESTORE_FIRST_S = 0.1
RESTORE_MAX_S = 5.0

log = logging.getLogger(__name__)


class Attachment:
    """Keeps an embedded server running until it is closed or the process ends.

    A keeper that dies is started again. A forked child keeps the server running too, until it
    closes its copy or ends.

    Attributes:
        url: `unix://` URL of the server.
        directory: of its data or, for a private server, its temporary files.
    """

    def __init__(
        self, url: str, location: EmbeddedDir, request: bytes, connection: socket.socket
    ) -> None:
        self.url = url
        self.location = location
        self.directory = location.directory
        self.connection = connection
        self._request = request
        self._lock = threading.Lock()
        self._is_closed = False
        watch.watcher.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach; the server stops soon if no other process is attached. May be called again."""
        with self._lock:
            self._is_closed = True
        watch.watcher.remove(self)
        self.connection.close()

    def restore(self) -> None:
        """Attach again after the keeper died, in the same directory: the URL stays what it is."""
        log.warning("keeper_died directory=%s", self.directory)
        retry = Backoff(RESTORE_FIRST_S, RESTORE_MAX_S)
        outage = OutageLog(log, "keeper_not_restored", f"directory={self.directory}")
        while not self._is_closed:
            try:
                # A keeper that stopped in order removed a private directory.
                location = EmbeddedDir.of(self.directory, is_private=self.location.is_private)
                keeper = connect_or_launch(location)
                if self._is_back(keeper):
                    outage.ended()
                    return
            except (EmbeddedError, OSError) as error:
                outage.failed(error)
            time.sleep(retry.next())

    def _is_back(self, keeper: KeeperConnection) -> bool:
        """Take this connection if the keeper accepts the request."""
        url = None
        try:
            url = request_url(keeper, self._request)
        finally:
            with self._lock:
                unused = keeper.connection
                if url is not None and not self._is_closed:
                    keeper.connection.setblocking(False)  # noqa: FBT003 - the only form
                    unused, self.connection = self.connection, keeper.connection
            unused.close()
        return url is not None


class PrivateDir:
    """The current directory of the private server of this process and its forked children."""

    location: ClassVar[EmbeddedDir | None] = None


def attach(
    directory: Path | None,
    *,
    serve: str | None = None,
    workers_for: str | None = None,
) -> Attachment:
    """Attach to the server of a directory; returns when it accepts commands.

    Args:
        directory: of the data; created if missing, shared by all processes that name it. None is a
            private server without persistence, shared by this process and its forked children.
        serve: namespace that this process serves itself while it is attached.
        workers_for: namespace that must be served: if no attached process serves it, a worker is
            started, and restarted if it ends.

    Returns:
        The attachment; keep it as long as the server is needed.

    Raises:
        ConfigError: The name of a namespace is invalid.
        EmbeddedError: The directory is not writable, no server is installed, or the server or the
            worker does not start.
    """
    for namespace in (serve, workers_for):
        if namespace is not None:
            checked_name("namespace", namespace)
    request = json.dumps({"use": workers_for, "serves": serve}).encode() + b"\n"
    while True:
        try:
            keeper = (
                connect_private()
                if directory is None
                else connect_or_launch(EmbeddedDir.of(directory))
            )
        except OSError as cause:
            raise unusable_dir_error(directory or Path("a temporary directory"), cause) from cause
        try:
            url = request_url(keeper, request)
        except BaseException:
            keeper.connection.close()
            raise
        if url is not None:
            return Attachment(url, keeper.location, request, keeper.connection)
        keeper.connection.close()


def request_url(keeper: KeeperConnection, request: bytes) -> str | None:
    """Send the request and wait for the reply.

    Returns:
        The URL of the server, or None if the keeper is stopping (invariant 3).

    Raises:
        EmbeddedError: The keeper replied with an error, died while starting, or does not reply.
    """
    if keeper.launch is not None:
        # The keeper forks and ends its first process at once, so that it is not our child.
        keeper.launch.wait()
    try:
        reply = exchange(keeper.connection, request)
    except TimeoutError as cause:
        raise EmbeddedError(
            f"the embedded server in {keeper.location.directory} was not ready after "
            f"{REPLY_TIMEOUT_S:g} s"
        ) from cause
    if reply.endswith(b"\n"):
        answer: dict[str, str] = json.loads(reply)
        if "error" in answer:
            raise EmbeddedError(answer["error"])
        return answer["url"]
    if keeper.launch is not None:
        words = tail(keeper.location.keeper_log)
        # Only the holder of the lock may remove the files of a shared directory.
        if keeper.location.is_private:
            keeper.location.remove()
        raise EmbeddedError(f"the keeper of the embedded server died while starting: {words}")
    return None


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """Send a line and return the reply line, which is incomplete if the keeper closed.

    Raises:
        TimeoutError: No reply in time.
    """
    connection.settimeout(REPLY_TIMEOUT_S)
    try:
        connection.sendall(request)
        with connection.makefile("rb") as replies:
            return replies.readline()
    except ConnectionError:
        return b""


def connect_or_launch(location: EmbeddedDir) -> KeeperConnection:
    """Connect to the keeper of a directory, and start it if it does not run.

    Several processes may do this at once: one acquires the lock and starts it, the others connect.

    Raises:
        EmbeddedError: The lock stays held, but no keeper listens.
    """
    deadline = time.monotonic() + REACH_TIMEOUT_S
    while time.monotonic() < deadline:
        connection = connect(location)
        if connection is not None:
            return KeeperConnection(location, connection)
        with starting:
            lock = location.try_lock()
            if lock is not None:
                return launch(location, lock)
        # A keeper is starting, or an old server is stopping.
        time.sleep(REACH_PAUSE_S)
    raise EmbeddedError(
        f"{location.directory} has been locked for {REACH_TIMEOUT_S:g} s by an embedded server "
        "that cannot be reached; end that server, or name another directory"
    )


def connect_private() -> KeeperConnection:
    """Connect to the private keeper of this process tree, or start one in a new directory."""
    with starting:
        location = PrivateDir.location
        if location is not None:
            connection = connect(location)
            if connection is not None:
                return KeeperConnection(location, connection)
        # Who is attached to a killed keeper starts it again, in the same directory.
        if location is None or not watch.watcher.any(lambda one: one.location == location):
            if location is not None:
                # A keeper that was killed leaves its files.
                location.remove()
            remove_abandoned()
            PrivateDir.location = location = EmbeddedDir.private()
            lock = location.try_lock()
            if lock is None:
                raise EmbeddedError(
                    f"another process locked the new directory {location.directory}"
                )
            return launch(location, lock)
    return connect_or_launch(EmbeddedDir.of(location.directory, is_private=True))
