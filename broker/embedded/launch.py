"""Start a keeper and connect to it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from broker.embedded.location import EmbeddedDir
from broker.embedded.log import open_log, rotate
from broker.errors import EmbeddedError

PEER = struct.Struct("3i")  # of SO_PEERCRED: process, user, group
PACKAGES = Path(__file__).resolve().parents[2]

# A fork while the lock or the listening socket is open here would copy it into the child, which
# would hold the lock, or keep an abandoned socket listening, as long as it runs.
starting = threading.RLock()
os.register_at_fork(
    before=starting.acquire,
    after_in_parent=starting.release,
    after_in_child=starting.release,
)


@dataclass(frozen=True, slots=True)
class KeeperConnection:
    """A connection to a keeper.

    Attributes:
        location: directory of its server.
        connection: open, nothing sent yet.
        launch: process of the keeper, if this process started it.
    """

    location: EmbeddedDir
    connection: socket.socket
    launch: subprocess.Popen[bytes] | None = None


def connect(location: EmbeddedDir) -> socket.socket | None:
    """Connect to the keeper of a directory; None if none listens.

    Raises:
        EmbeddedError: another user listens there.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(location.control))
        check_peer(connection, location.control)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def check_peer(connection: socket.socket, path: Path) -> None:
    """Refuse a socket on which another user listens: it would get all that is written.

    Raises:
        EmbeddedError: with both users. Systems that do not tell the peer are not checked.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    _pid, user, _group = PEER.unpack(told)
    if user != os.geteuid():
        raise EmbeddedError(
            f"user {user} listens on {path}, and this process is user {os.geteuid()}; run both as "
            "the same user, or name a directory of your own"
        )


def launch(location: EmbeddedDir, lock: int) -> KeeperConnection:
    """Start a keeper and connect to it.

    The listening socket is created here and inherited, like the lock: it queues connections before
    the keeper runs, and they break if the keeper dies.

    Args:
        location: directory of the server.
        lock: descriptor of its lock; closed here, held by the keeper from now on.
    """
    try:
        location.prepare_sockets()
        location.clear_sockets()
        rotate(location.keeper_log)
        with socket.socket(socket.AF_UNIX) as listener, open_log(location.keeper_log) as log:
            listener.bind(str(location.control))
            # The directory may be accessible to others, but none can connect before `listen`.
            location.control.chmod(0o600)
            listener.listen(socket.SOMAXCONN)
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(location.control))
                keeper = spawn(location, listener.fileno(), lock, log)
            except BaseException:
                connection.close()
                raise
        return KeeperConnection(location, connection, keeper)
    finally:
        os.close(lock)


def spawn(
    location: EmbeddedDir, listener: int, lock: int, log: BinaryIO
) -> subprocess.Popen[bytes]:
    """Start the keeper process, in a session of its own so that Ctrl-C does not reach it."""
    kind = "private" if location.is_private else "shared"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "broker.embedded.keeper"),
            *(location.directory, kind, str(listener), str(lock)),
        ],
        # `-m` searches here first, so that the keeper runs the same code.
        cwd=PACKAGES,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(listener, lock),
        start_new_session=True,
    )
