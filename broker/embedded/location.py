"""Where an embedded server lives: its directory, its sockets, its lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from broker.errors import EmbeddedError

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing NUL included.
SOCKET_PATH_BYTES = 103


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedDir:
    """The files of one embedded server.

    Attributes:
        directory: absolute; holds the data, the logs and the lock.
        sockets: holds the sockets; the directory itself unless its path is too long for them.
        is_private: the directory is temporary and goes when the server stops.
    """

    directory: Path
    sockets: Path
    is_private: bool

    @classmethod
    def of(cls, directory: Path, *, is_private: bool = False) -> EmbeddedDir:
        """Make ready the place in this directory, which is created (mode 700) when missing.

        Raises:
            EmbeddedError: The directory cannot be created.
        """
        try:
            # Two spellings of one directory must lead to one server.
            directory = directory.resolve()
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError) as cause:
            raise unusable(directory, cause) from cause
        place = cls(directory=directory, sockets=sockets_of(directory), is_private=is_private)
        place.prepare_sockets()
        return place

    @classmethod
    def private(cls) -> EmbeddedDir:
        """Make a place in a new temporary directory, for this process tree alone."""
        try:
            directory = Path(tempfile.mkdtemp(prefix="statebroker-"))
        except OSError as cause:
            raise unusable(Path(tempfile.gettempdir()), cause) from cause
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
        """What the keeper has to say: restarts, and its own failure."""
        return self.directory / "keeper.log"

    def prepare_sockets(self) -> None:
        """Create the sockets' directory when it is a separate one, and trust it only if it is ours.

        Raises:
            EmbeddedError: Somebody else owns it, or may write to it.
        """
        if self.sockets == self.directory:
            return
        try:
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            found = self.sockets.lstat()
        except OSError as cause:
            raise unusable(self.sockets, cause) from cause
        # Its name can be guessed and its parent is everybody's.
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not is_ours or found.st_mode & 0o077:
            raise EmbeddedError(
                f"{self.sockets} belongs to somebody else or is open to others; remove it, or name "
                "a data directory with a shorter path"
            )

    def try_lock(self) -> int | None:
        """Take the lock of invariant 2 if nobody has it.

        Returns:
            The descriptor that holds the lock (also for every process that inherits it), or None.

        Raises:
            EmbeddedError: The directory cannot be written.
        """
        try:
            descriptor = os.open(self.directory / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as cause:
            raise unusable(self.directory, cause) from cause
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as cause:
            os.close(descriptor)
            raise unusable(self.directory, cause) from cause
        return descriptor

    def clear_sockets(self) -> None:
        """Remove the sockets; only for the holder of the lock."""
        self.control.unlink(missing_ok=True)
        self.server.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove what must not outlive the server: the sockets, and a private place altogether."""
        self.clear_sockets()
        if self.is_private:
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.sockets != self.directory:
            shutil.rmtree(self.sockets, ignore_errors=True)


def sockets_of(directory: Path) -> Path:
    """Return where the sockets of this directory are, the same in every process of this user."""
    if len(os.fsencode(directory / "keeper.sock")) <= SOCKET_PATH_BYTES:
        return directory
    # Not the configured temporary directory where /tmp will do: processes with different TMPDIR
    # must find each other, and it may be the long path itself.
    base = Path("/tmp")  # noqa: S108 (the name is guarded by prepare_sockets)
    if not os.access(base, os.W_OK | os.X_OK):
        base = Path(tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return base / f"statebroker-{os.geteuid()}-{digest}"


def unusable(directory: Path, cause: Exception) -> EmbeddedError:
    """Say in one line that a directory will not do, why, and what would."""
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return EmbeddedError(
        f"an embedded server cannot live in {directory}: {reason}; "
        "name a directory that this user may write to"
    )
