"""The Valkey (or Redis) process of an embedded server."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from broker.embedded.binary import find_binary
from broker.embedded.child import Child
from broker.embedded.location import EmbeddedDir

# An append-only file loads at some 100 MB/s.
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 10.0


class Server(Child):
    """The server process, started on construction.

    Args:
        location: its directory.
        lock: descriptor of the lock, which the server inherits (invariant 2).

    Raises:
        EmbeddedError: There is no binary to run.
    """

    def __init__(self, location: EmbeddedDir, lock: int) -> None:
        self.location = location
        super().__init__(
            "the embedded server",
            command(find_binary(), location),
            log=location.directory / "server.log",
            start_timeout_s=START_TIMEOUT_S,
            # With `everysec` an acknowledged write may be unwritten for up to 2 s while the disk is
            # busy. SIGTERM lets the server write it, and the lock keeps the next server waiting. A
            # private server has nothing to write.
            orphan_signal=signal.SIGKILL if location.is_private else signal.SIGTERM,
            inherits=(lock,),
        )

    async def is_ready(self) -> bool:
        """Whether it accepts commands (and is not loading)."""
        return await answers_ping(self.location.server)

    def clear(self) -> None:
        """Remove the socket that a killed server leaves."""
        self.location.server.unlink(missing_ok=True)

    async def shut_down(self) -> None:
        """Stop it; a shared server writes its data to disk first."""
        await self.stop(0 if self.location.is_private else STOP_GRACE_S)


def command(binary: Path, location: EmbeddedDir) -> list[str | Path]:
    """Return the command line: no TCP, no eviction, and persistence unless it is private."""
    return [
        binary,
        *("--port", "0"),
        *("--unixsocket", location.server, "--unixsocketperm", "700"),
        *("--dir", location.directory),
        *("--maxmemory-policy", "noeviction"),
        *("--save", ""),
        *("--appendonly", "no" if location.is_private else "yes", "--appendfsync", "everysec"),
    ]


async def answers_ping(socket: Path) -> bool:
    """Whether a server on this socket answers PING with PONG."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    try:
        writer.write(b"*1\r\n$4\r\nPING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()
