"""The process that owns an embedded server: `python -m broker.embedded.keeper`.

Started by `attach`, never by hand. Nothing it does depends on the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from broker.config import checked_name
from broker.embedded.location import EmbeddedDir
from broker.embedded.server import Server
from broker.embedded.worker_pool import Crew
from broker.errors import ConfigError, EmbeddedError

WORKER_COMMAND = (sys.executable, "-m", "workers", "serve")


@dataclass(frozen=True, slots=True)
class Request:
    """What an attaching process asks: one JSON line.

    Attributes:
        use: namespace that must be served, None for the bare server.
        serves: namespace that the process serves by itself.
    """

    use: str | None
    serves: str | None

    @classmethod
    def parse(cls, line: bytes) -> Request:
        """Read the line.

        Raises:
            EmbeddedError: It is not a request.
        """
        try:
            asked = json.loads(line)
            request = cls(use=asked["use"], serves=asked["serves"])
            for namespace in (request.use, request.serves):
                if namespace is not None:
                    checked_name("namespace", namespace)
        except (ConfigError, ValueError, TypeError, KeyError) as cause:
            raise EmbeddedError(f"not a request: {line[:100]!r}") from cause
        return request


class Keeper:
    """Runs the server, and workers where asked, as long as anybody is attached.

    Args:
        place: where the server lives.
        lock: descriptor of the place's lock, held.
        worker_command: how to run a worker.
    """

    def __init__(self, place: EmbeddedDir, lock: int, worker_command: Sequence[str]) -> None:
        self.place = place
        self.lock = lock
        self.server: Server | None = None
        self.crew = Crew(worker_command, url=place.url, directory=place.directory)
        self.attached = 0
        self.control: asyncio.Server | None = None
        self.stopping = asyncio.Event()

    async def run(self, listener: socket.socket) -> None:
        """Keep the server until the last connection is gone or a signal asks to stop.

        Args:
            listener: the control socket, bound and listening; the connection of the process that
                started this one waits in it already.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.close)
        self.control = await asyncio.start_unix_server(
            self.converse, sock=listener, start_serving=False
        )
        await self.control.start_serving()
        await self.stopping.wait()
        await self.crew.stop()
        if self.server is not None:
            await self.server.end()
        self.place.remove()

    async def converse(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Hold one attachment: admit it, reply, and note when it is gone (invariant 1)."""
        with ExitStack() as leaving, contextlib.suppress(ConnectionError, ValueError):
            self.attached += 1
            leaving.callback(self.leave)
            leaving.callback(writer.close)
            try:
                request = Request.parse(await reader.readline())
                reply = {"url": await self.admit(request, leaving)}
            except EmbeddedError as failure:
                reply = {"error": str(failure)}
            if self.stopping.is_set():
                return
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
            while "url" in reply and await reader.read(1024):
                pass

    async def admit(self, request: Request, leaving: ExitStack) -> str:
        """Do what a process needs to be attached, and note what to undo when it leaves.

        Returns:
            The URL of the server.

        Raises:
            EmbeddedError: The server or the worker cannot be started.
        """
        if request.serves is not None:
            self.crew.add_server(request.serves)
            leaving.callback(self.crew.remove_server, request.serves)
        if self.server is None:
            self.server = Server(self.place, self.lock)
        await self.server.ready()
        if request.use is not None:
            self.crew.add_user(request.use)
            leaving.callback(self.crew.remove_user, request.use)
            await self.crew.ready(request.use)
        return self.place.url

    def leave(self) -> None:
        """Note that a connection is gone; the last one takes everything with it."""
        self.attached -= 1
        if not self.attached:
            self.close()

    def close(self) -> None:
        """Cut off who waits for a reply, and begin to stop, in one step (invariant 3)."""
        self.stopping.set()
        self.place.control.unlink(missing_ok=True)
        if self.control is not None:
            self.control.close()


async def keep(directory: Path, *, is_private: bool, listener: int, lock: int) -> None:
    """Run a keeper on the descriptors that `attach` handed over."""
    keeper = Keeper(EmbeddedDir.of(directory, is_private=is_private), lock, WORKER_COMMAND)
    await keeper.run(socket.socket(fileno=listener))


def main() -> None:
    """Run as `keeper DIRECTORY shared|private LISTENER LOCK` (descriptors), as an orphan."""
    directory, kind, listener, lock = sys.argv[1:]
    # Whoever starts the keeper must not have to wait for its end, or get to see an unknown child.
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(
        keep(
            Path(directory),
            is_private=kind == "private",
            listener=int(listener),
            lock=int(lock),
        )
    )


if __name__ == "__main__":
    main()
