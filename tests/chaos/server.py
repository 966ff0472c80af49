"""The server of a chaos run: kill it, and restart it from its log, an old copy, or empty."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from time import monotonic

from broker.embedded.binary import find_binary
from broker.testing.process import Process
from tests.chaos.clock import Clock

MAX_COPIES = 40
START_TIMEOUT_S = 20.0
OPTIONS = {
    "--port": "0",
    "--unixsocketperm": "700",
    "--appendfsync": "everysec",
    "--save": "",
    "--maxmemory-policy": "noeviction",
    # A rewrite during a copy would make the copy invalid.
    "--auto-aof-rewrite-percentage": "0",
}


class Server:
    """A Redis (or Valkey) with an append-only file, on a unix socket.

    Args:
        folder: of this run.
        clock: the wall clock of the server.
        binary: of the server; None: the bundled Valkey, or the installed server.
    """

    def __init__(self, folder: Path, clock: Clock, binary: str | None = None) -> None:
        self.binary = binary or find_binary()
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.socket = folder / "server.sock"
        self.url = f"unix://{self.socket}"
        self.copies: list[tuple[float, Path]] = []
        self._clock = clock
        self._process: Process | None = None
        self._made = 0

    async def start(self, *, from_dump: bool = False) -> None:
        """Start it, and return once it answers."""
        options = OPTIONS | {
            "--unixsocket": str(self.socket),
            "--dir": str(self.data),
            "--logfile": str(self.folder / "server.log"),
            "--appendonly": "no" if from_dump else "yes",
        }
        self.socket.unlink(missing_ok=True)
        self._process = Process(
            [self.binary, *[word for option in options.items() for word in option]],
            self.folder / "server.out",
            environment={**os.environ, **self._clock.environment},
            is_leader=True,
        )
        async with asyncio.timeout(START_TIMEOUT_S):
            while b"PONG" not in await self.ask("PING"):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        if from_dump:
            # Writes a new append-only file from the dump; files are replaced meanwhile.
            await self.ask("CONFIG SET appendonly yes")
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._has_settled():  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)

    async def _has_settled(self) -> bool:
        """Whether the append-only file is enabled, and not being rewritten."""
        info = await self.ask("INFO persistence", is_long=True)
        idle = (b"aof_enabled:1", b"aof_rewrite_in_progress:0", b"aof_rewrite_scheduled:0")
        return all(line in info for line in idle)

    async def ask(self, command: str, *, is_long: bool = False) -> bytes:
        """Return the first line of the answer to an inline command; empty if there is none.

        Args:
            command: one line.
            is_long: the reply is a bulk string; return all of it.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return b""
        try:
            writer.write(command.encode() + b"\r\n")
            line = await reader.readline()
            return await reader.readexactly(int(line[1:])) if is_long and line[:1] == b"$" else line
        except (OSError, asyncio.IncompleteReadError):
            return b""
        finally:
            writer.close()

    def kill(self) -> None:
        """SIGKILL it."""
        if self._process is not None:
            self._process.kill()

    def pause(self, *, is_on: bool) -> None:
        """SIGSTOP or SIGCONT it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP if is_on else signal.SIGCONT)

    async def copy(self) -> None:
        """Make a copy of the data on disk, with a dump."""
        self._made += 1
        place = self.folder / f"copy-{self._made}"
        now = monotonic()
        await self.ask("SAVE")
        await asyncio.to_thread(shutil.copytree, self.data, place)
        self.copies.append((now, place))
        for _, old in self.copies[:-MAX_COPIES]:
            shutil.rmtree(old)
        del self.copies[:-MAX_COPIES]

    def go_back(self, age: float, *, to_dump: bool) -> float:
        """Replace the data by a copy; only while the server does not run.

        Args:
            age: minimum age of the copy in seconds; the newest such copy is used, else the oldest.
            to_dump: use only its dump, not its append-only file.

        Returns:
            The age of the copy.
        """
        now = monotonic()
        if not self.copies:
            return self.forget()
        fitting = [pair for pair in self.copies if now - pair[0] >= age] or self.copies[:1]
        made, place = fitting[-1]
        shutil.rmtree(self.data)
        if to_dump:
            self.data.mkdir()
            shutil.copy(place / "dump.rdb", self.data)
        else:
            shutil.copytree(place, self.data)
        # Later copies belong to another history.
        self.drop_copies(after=made)
        return now - made

    def forget(self) -> float:
        """Remove the data and every copy; only while it does not run."""
        shutil.rmtree(self.data)
        self.data.mkdir()
        self.drop_copies()
        return 0.0

    def drop_copies(self, after: float = 0.0) -> None:
        """Remove copies made after a time, since they belong to a discarded history."""
        for made, place in self.copies:
            if made > after:
                shutil.rmtree(place)
        self.copies = [pair for pair in self.copies if pair[0] <= after]
