"""The Valkey (or Redis) process of an embedded server."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from broker.embedded.binary import find_binary
from broker.embedded.child import Child
from broker.embedded.location import EmbeddedDir

# An append-only file loads at some hundred MB a second.
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 10.0


class Server(Child):
    """The server of a place, started when made.

    Args:
        place: where it lives.
        lock: descriptor of the place's lock, which the server inherits (invariant 2).

    Raises:
        EmbeddedError: There is no binary to run.
    """

    def __init__(self, place: EmbeddedDir, lock: int) -> None:
        self.place = place
        super().__init__(
            "the embedded server",
            command(find_binary(), place),
            log=place.directory / "server.log",
            start_timeout_s=START_TIMEOUT_S,
            # With `everysec` an acknowledged write may wait in the process for up to 2 s while the
            # disk is busy. SIGTERM lets the server write it out; the lock holds off the next server
            # until then. Memory without a file has nothing to save.
            orphan_signal=signal.SIGKILL if place.is_private else signal.SIGTERM,
            inherits=(lock,),
        )

    async def is_ready(self) -> bool:
        """Tell whether it takes commands (and is not still loading)."""
        return await answers_ping(self.place.server)

    def clear(self) -> None:
        """Remove the socket, which a killed server leaves."""
        self.place.server.unlink(missing_ok=True)

    async def end(self) -> None:
        """Stop it, with its data on disk if it keeps any."""
        await self.stop(0 if self.place.is_private else STOP_GRACE_S)


def command(binary: Path, place: EmbeddedDir) -> list[str | Path]:
    """Return the command line: no TCP, no eviction, and a file only where there is a directory."""
    return [
        binary,
        *("--port", "0"),
        *("--unixsocket", place.server, "--unixsocketperm", "700"),
        *("--dir", place.directory),
        *("--maxmemory-policy", "noeviction"),
        *("--save", ""),
        *("--appendonly", "no" if place.is_private else "yes", "--appendfsync", "everysec"),
    ]


async def answers_ping(socket: Path) -> bool:
    """Tell whether a server on this socket answers PING with PONG."""
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
