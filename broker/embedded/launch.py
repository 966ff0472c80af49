"""Start a keeper and connect to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from broker.embedded.location import EmbeddedDir
from broker.embedded.log import rotate

PACKAGES = Path(__file__).resolve().parents[2]

# A fork while the lock or the listening socket is open here would leave a copy in the child, and
# the lock would be held, or a dead socket would listen, for as long as that child lives.
starting = threading.RLock()
os.register_at_fork(
    before=starting.acquire,
    after_in_parent=starting.release,
    after_in_child=starting.release,
)


@dataclass(frozen=True, slots=True)
class Line:
    """A connection to a keeper.

    Attributes:
        place: where its server lives.
        connection: open, nothing sent yet.
        launch: the start of the keeper when this process started it.
    """

    place: EmbeddedDir
    connection: socket.socket
    launch: subprocess.Popen[bytes] | None = None


def connect(place: EmbeddedDir) -> socket.socket | None:
    """Connect to the keeper of a place; None when nobody listens."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(place.control))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def launch(place: EmbeddedDir, lock: int) -> Line:
    """Start a keeper and connect to it.

    The listening socket is made here and handed over, as the lock is: it takes connections, which
    wait in it, before the keeper runs, and they break if the keeper dies.

    Args:
        place: where to.
        lock: descriptor of its lock; closed here, held by the keeper from now on.
    """
    try:
        place.prepare_sockets()
        place.clear_sockets()
        rotate(place.keeper_log)
        with socket.socket(socket.AF_UNIX) as listener, place.keeper_log.open("ab") as log:
            listener.bind(str(place.control))
            # The directory may be open to others; nobody gets in before `listen`.
            place.control.chmod(0o600)
            listener.listen(socket.SOMAXCONN)
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(place.control))
                keeper = spawn(place, listener.fileno(), lock, log)
            except BaseException:
                connection.close()
                raise
        return Line(place, connection, keeper)
    finally:
        os.close(lock)


def spawn(place: EmbeddedDir, listener: int, lock: int, log: BinaryIO) -> subprocess.Popen[bytes]:
    """Run the keeper's process, in a session of its own: Ctrl-C here is not meant for it."""
    kind = "private" if place.is_private else "shared"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "broker.embedded.keeper"),
            *(place.directory, kind, str(listener), str(lock)),
        ],
        # `-m` looks here first: the same code as this, wherever it came from.
        cwd=PACKAGES,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(listener, lock),
        start_new_session=True,
    )
