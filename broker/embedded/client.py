"""Attach this process to an embedded server, starting it if nobody has."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from broker.config import checked_name
from broker.embedded.launch import Line, connect, launch, starting
from broker.embedded.location import EmbeddedDir, unusable
from broker.embedded.log import tail
from broker.errors import EmbeddedError

# Longer than a keeper takes to stop everything.
REACH_TIMEOUT_S = 30.0
REACH_PAUSE_S = 0.01
# Longer than the keeper's own limits for starting the server and a worker, which tell more.
REPLY_TIMEOUT_S = 120.0


class Attachment:
    """A hold on an embedded server: it runs at least until this is closed or the process ends.

    A forked child holds it too, until it closes its copy or ends.

    Attributes:
        url: `unix://` URL of the server.
        directory: where its data or, if it is private, its temporary files are.
    """

    def __init__(self, url: str, directory: Path, connection: socket.socket) -> None:
        self.url = url
        self.directory = directory
        self.connection = connection

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
        """Let go of the server, which stops soon after if nobody else holds it; may be repeated."""
        self.connection.close()


class PrivateDir:
    """Where the private server of this process, and of those forked from it, lives at present."""

    place: ClassVar[EmbeddedDir | None] = None


def attach(
    directory: Path | None,
    *,
    serve: str | None = None,
    workers_for: str | None = None,
) -> Attachment:
    """Attach to the server of a directory; returns when it takes commands.

    Args:
        directory: holds the data, is created when missing, and is shared by all processes that name
            it; None is a private server without a file, shared by the attachments of this process
            and of the processes forked from it since.
        serve: namespace that this process serves by itself, for as long as it is attached.
        workers_for: namespace that must be served: where no attached process does so, one is
            started for it (and again, should that process end).

    Returns:
        The attachment; keep it as long as the server is needed.

    Raises:
        ConfigError: A namespace has a name that no namespace can have.
        EmbeddedError: The directory is not writable, no server is installed, or the server or the
            worker does not start; the text says which, and what to do.
    """
    for namespace in (serve, workers_for):
        if namespace is not None:
            checked_name("namespace", namespace)
    request = json.dumps({"use": workers_for, "serves": serve}).encode() + b"\n"
    while True:
        try:
            line = reach_private() if directory is None else reach(EmbeddedDir.of(directory))
        except OSError as cause:
            raise unusable(directory or Path("a temporary directory"), cause) from cause
        try:
            url = converse(line, request)
        except BaseException:
            line.connection.close()
            raise
        if url is not None:
            return Attachment(url, line.place.directory, line.connection)
        line.connection.close()


def converse(line: Line, request: bytes) -> str | None:
    """Send the request and wait for the reply.

    Returns:
        The URL of the server, or None when the keeper was about to stop (invariant 3).

    Raises:
        EmbeddedError: The keeper tells why not, it died at the start, or it does not answer.
    """
    if line.launch is not None:
        # The keeper leaves its first process at once, so as to be nobody's child.
        line.launch.wait()
    try:
        reply = ask(line.connection, request)
    except TimeoutError as cause:
        raise EmbeddedError(
            f"the embedded server in {line.place.directory} was not ready after "
            f"{REPLY_TIMEOUT_S:g} s"
        ) from cause
    if reply.endswith(b"\n"):
        answer: dict[str, str] = json.loads(reply)
        if "error" in answer:
            raise EmbeddedError(answer["error"])
        return answer["url"]
    if line.launch is not None:
        words = tail(line.place.keeper_log)
        # Other places are for the holder of their lock to clear.
        if line.place.is_private:
            line.place.remove()
        raise EmbeddedError(f"the keeper of the embedded server died at the start: {words}")
    return None


def ask(connection: socket.socket, request: bytes) -> bytes:
    """Send a line and return the line that comes back, less when the other end is gone.

    Raises:
        TimeoutError: Nothing came back in time.
    """
    connection.settimeout(REPLY_TIMEOUT_S)
    try:
        connection.sendall(request)
        with connection.makefile("rb") as replies:
            return replies.readline()
    except ConnectionError:
        return b""


def reach(place: EmbeddedDir) -> Line:
    """Connect to the keeper of a directory, starting it if nobody has.

    Several processes may do this at once: one gets the lock and starts, the others find its socket.

    Raises:
        EmbeddedError: The lock stays taken and yet nobody listens.
    """
    deadline = time.monotonic() + REACH_TIMEOUT_S
    while time.monotonic() < deadline:
        connection = connect(place)
        if connection is not None:
            return Line(place, connection)
        with starting:
            lock = place.try_lock()
            if lock is not None:
                return launch(place, lock)
        # Somebody is about to listen, or an old server is about to end.
        time.sleep(REACH_PAUSE_S)
    raise EmbeddedError(
        f"{place.directory} has been locked for {REACH_TIMEOUT_S:g} s by an embedded server that "
        "cannot be reached; end that server, or name another directory"
    )


def reach_private() -> Line:
    """Connect to the private keeper of this process tree, or start one in a new place."""
    with starting:
        if PrivateDir.place is not None:
            connection = connect(PrivateDir.place)
            if connection is not None:
                return Line(PrivateDir.place, connection)
            # The keeper removed it, unless it was killed.
            PrivateDir.place.remove()
        PrivateDir.place = place = EmbeddedDir.private()
        lock = place.try_lock()
        if lock is None:
            raise EmbeddedError(f"somebody locked the new directory {place.directory}")
        return launch(place, lock)
