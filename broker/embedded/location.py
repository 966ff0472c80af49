"""The files of an embedded server: directory, sockets and lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from broker.errors import EmbeddedError

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, including the final NUL.
SOCKET_PATH_BYTES = 103
LOCK_NAME = "keeper.lock"
PRIVATE_PREFIX = "statebroker-"
ABANDONED_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedDir:
    """The files of one embedded server.

    Attributes:
        directory: absolute; holds the data, the logs and the lock.
        sockets: holds the sockets; same as `directory` unless its path is too long for a socket.
        is_private: the directory is temporary and is removed when the server stops.
    """

    directory: Path
    sockets: Path
    is_private: bool

    @classmethod
    def of(cls, directory: Path, *, is_private: bool = False) -> EmbeddedDir:
        """Prepare a directory, which is created (mode 700) if missing.

        Raises:
            EmbeddedError: The directory cannot be created, belongs to another user, or others may
                write to it.
        """
        try:
            # Different paths of one directory must lead to one server.
            directory = directory.resolve()
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.stat()
        except (OSError, RuntimeError) as cause:
            raise unusable_dir_error(directory, cause) from cause
        # Who can write to it can put a socket there, and gets what we write.
        if found.st_uid != os.geteuid():
            raise EmbeddedError(
                f"{directory} belongs to user {found.st_uid}, and this process is user "
                f"{os.geteuid()}; run as that user, or name a directory of your own"
            )
        if found.st_mode & 0o022:
            raise EmbeddedError(
                f"others may write to {directory} (mode {stat.S_IMODE(found.st_mode):o}); run: "
                f"chmod go-w {shlex.quote(str(directory))}"
            )
        place = cls(directory=directory, sockets=sockets_of(directory), is_private=is_private)
        place.prepare_sockets()
        return place

    @classmethod
    def private(cls) -> EmbeddedDir:
        """Prepare a new temporary directory, for this process tree only."""
        try:
            directory = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX))
        except OSError as cause:
            raise unusable_dir_error(Path(tempfile.gettempdir()), cause) from cause
        return cls.of(directory, is_private=True)

    @property
    def control(self) -> Path:
        """The keeper's socket."""
        return self.sockets / "keeper.sock"

    @property
    def server(self) -> Path:
        """The Valkey server's socket."""
        return self.sockets / "valkey.sock"

    @property
    def url(self) -> str:
        """The URL of the server for clients."""
        return f"unix://{quote(str(self.server))}"

    @property
    def keeper_log(self) -> Path:
        """The log of the keeper: restarts and its own errors."""
        return self.directory / "keeper.log"

    def prepare_sockets(self) -> None:
        """Create the directory of the sockets if it is separate, and check its owner and mode.

        Raises:
            EmbeddedError: Another user owns it, or may access it.
        """
        if self.sockets == self.directory:
            return
        try:
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            found = self.sockets.lstat()
        except OSError as cause:
            raise unusable_dir_error(self.sockets, cause) from cause
        # Its name is predictable, and its parent is writable for all users.
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not is_ours or found.st_mode & 0o077:
            raise EmbeddedError(
                f"{self.sockets} belongs to another user or is accessible to others; remove it, or "
                "name a data directory with a shorter path"
            )

    def try_lock(self) -> int | None:
        """Acquire the lock of invariant 2 if it is free.

        Returns:
            The descriptor that holds the lock (also for every process that inherits it), or None.

        Raises:
            EmbeddedError: The directory cannot be written.
        """
        try:
            descriptor = os.open(self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as cause:
            raise unusable_dir_error(self.directory, cause) from cause
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as cause:
            os.close(descriptor)
            raise unusable_dir_error(self.directory, cause) from cause
        return descriptor

    def clear_sockets(self) -> None:
        """Remove the sockets; only for the holder of the lock."""
        self.control.unlink(missing_ok=True)
        self.server.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the sockets, and a private directory as a whole."""
        self.clear_sockets()
        if self.is_private:
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.sockets != self.directory:
            shutil.rmtree(self.sockets, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove private directories whose keeper and all users were killed: nobody else does."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PRIVATE_PREFIX}*"):
        # Whatever is wrong with one of them is no reason not to start.
        with contextlib.suppress(OSError, EmbeddedError):
            found = directory.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            # A young one may not have been locked yet.
            is_young = time.time() - found.st_mtime < ABANDONED_S
            if not is_ours or is_young or not (directory / LOCK_NAME).exists():
                continue
            place = EmbeddedDir.of(directory, is_private=True)
            lock = place.try_lock()
            if lock is not None:
                place.remove()
                os.close(lock)


def sockets_of(directory: Path) -> Path:
    """Return the directory of the sockets, the same in every process of this user."""
    if len(os.fsencode(directory / "keeper.sock")) <= SOCKET_PATH_BYTES:
        return directory
    # /tmp rather than TMPDIR: processes with different TMPDIR must find each other, and TMPDIR may
    # be too long itself.
    base = Path("/tmp")  # noqa: S108 (the name is guarded by prepare_sockets)
    if not os.access(base, os.W_OK | os.X_OK):
        base = Path(tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return base / f"statebroker-{os.geteuid()}-{digest}"


def unusable_dir_error(directory: Path, cause: Exception) -> EmbeddedError:
    """Return the error for a directory that cannot be used."""
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return EmbeddedError(
        f"an embedded server cannot use {directory}: {reason}; "
        "name a directory that this user may write to"
    )
