"""The process that owns an embedded server: `python -m broker.embedded.keeper`.

Started by `attach`, never manually. It is independent of the process that started it.
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from broker.config import checked_name
from broker.embedded.location import EmbeddedDir
from broker.embedded.server import Server
from broker.embedded.worker_pool import WorkerPool
from broker.errors import ConfigError, EmbeddedError
from broker.runtime.log_thread import LogThread

# A package that can serve a namespace has an entry point `serve = "<package>"` in this group:
# `python -m <package> serve` runs a worker.
WORKERS_GROUP = "statebroker.workers"
WORKERS_NAME = "serve"


@dataclass(frozen=True, slots=True)
class Request:
    """The request of an attaching process: one JSON line.

    Attributes:
        use: namespace that must be served; None for only the server.
        serves: namespace that the process serves itself.
    """

    use: str | None
    serves: str | None

    @classmethod
    def parse(cls, line: bytes) -> Request:
        """Parse the line.

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
    """Runs the server, and workers as requested, while any process is attached.

    Args:
        location: directory of the server.
        lock: descriptor of the held lock.
        find_workers: returns the command that runs a worker; called when one is needed.
    """

    def __init__(
        self, location: EmbeddedDir, lock: int, find_workers: Callable[[], Sequence[str]]
    ) -> None:
        self.location = location
        self.lock = lock
        self.server: Server | None = None
        self.workers = WorkerPool(find_workers, url=location.url, directory=location.directory)
        self.attached = 0
        self.control: asyncio.Server | None = None
        self.stopping = asyncio.Event()

    async def run(self, listener: socket.socket) -> None:
        """Run until the last connection is closed or a signal arrives.

        Args:
            listener: the control socket, listening; the connection of the process that started
                this one is already in its queue.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.close)
        self.control = await asyncio.start_unix_server(
            self.handle_connection, sock=listener, start_serving=False
        )
        await self.control.start_serving()
        await self.stopping.wait()
        await self.workers.stop()
        if self.server is not None:
            await self.server.shut_down()
        self.location.remove()

    async def handle_connection(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve one attachment: handle its request, reply, wait until it closes (invariant 1)."""
        with ExitStack() as on_detach, contextlib.suppress(ConnectionError, ValueError):
            self.attached += 1
            on_detach.callback(self.detach)
            on_detach.callback(writer.close)
            try:
                request = Request.parse(await reader.readline())
                reply = {"url": await self.handle_request(request, on_detach)}
            except EmbeddedError as failure:
                reply = {"error": str(failure)}
            if self.stopping.is_set():
                return
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
            while "url" in reply and await reader.read(1024):
                pass

    async def handle_request(self, request: Request, on_detach: ExitStack) -> str:
        """Do what a request needs, and register what to undo when its process detaches.

        Returns:
            The URL of the server.

        Raises:
            EmbeddedError: The server or the worker cannot be started.
        """
        if request.serves is not None:
            self.workers.add_server(request.serves)
            on_detach.callback(self.workers.remove_server, request.serves)
        if self.server is None:
            self.server = Server(self.location, self.lock)
        await self.server.ready()
        if request.use is not None:
            self.workers.add_user(request.use)
            on_detach.callback(self.workers.remove_user, request.use)
            await self.workers.ready(request.use)
        return self.location.url

    def detach(self) -> None:
        """Count a closed connection; after the last one, stop."""
        self.attached -= 1
        if not self.attached:
            self.close()

    def close(self) -> None:
        """Begin to stop; connections without a reply are closed (invariant 3)."""
        self.stopping.set()
        self.location.control.unlink(missing_ok=True)
        if self.control is not None:
            self.control.close()


def find_workers() -> Sequence[str]:
    """Return the command that runs a worker, from the entry points of installed packages.

    `broker` does not import `workers`, so the keeper must not name them either.

    Raises:
        EmbeddedError: none is installed.
    """
    for found in entry_points(group=WORKERS_GROUP, name=WORKERS_NAME):
        return (sys.executable, "-m", found.module, found.name)
    raise EmbeddedError(
        f"no workers are installed (entry point {WORKERS_NAME!r} of {WORKERS_GROUP!r}); run: "
        "pip install 'statebroker[server]'"
    )


async def keep(directory: Path, *, is_private: bool, listener: int, lock: int) -> None:
    """Run a keeper on descriptors inherited from `attach`."""
    keeper = Keeper(EmbeddedDir.of(directory, is_private=is_private), lock, find_workers)
    await keeper.run(socket.socket(fileno=listener))


def main() -> None:
    """Run as `keeper DIRECTORY shared|private LISTENER LOCK` (descriptors), as an orphan."""
    directory, kind, listener, lock = sys.argv[1:]
    # Fork, so that the keeper is not a child of the process that attaches.
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    line = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    logging.basicConfig(handlers=[LogThread(line)])
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
