"""A proxy in front of Redis that injects network faults.

It parses both directions, so that it can forward a command and drop only its reply, or drop a
single pub/sub message.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from broker.sync.loop_thread import LoopThread
from broker.testing.link import Link
from broker.testing.switches import Faults

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


@dataclass(eq=False, slots=True)
class _Ends:
    """The two connections of a client, and the tasks that copy between them."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class FaultProxy:
    """Listens on a TCP port of 127.0.0.1, forwards everything to Redis, and injects faults.

    `async with FaultProxy(url) as proxy:` runs on the event loop of the caller; `with
    FaultProxy(url) as proxy:` on a thread of its own. Connect the program under test to
    `proxy.url`, and switch faults on and off at any time in `proxy.faults`, from any thread.
    Initially all are off.

    Args:
        url: of Redis: `redis://` or `unix://`, without TLS.
        seed: of the random choices (which messages to drop, where to split).

    Attributes:
        faults: the switches.
        counts: counters by name: connections, refused, requests_lost, replies_lost,
            messages, messages_dropped, messages_repeated, messages_reordered, delayed, stalled,
            split, cut, reset; and bytes_to_server and bytes_to_client, of what was passed on.
    """

    def __init__(self, url: str, *, seed: int | None = None) -> None:
        self.target = url
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._links: set[_Ends] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: LoopThread | None = None
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL for the program under test; user, password and database as in `target`."""
        parts = urlsplit(self.target)
        login = parts.netloc.rpartition("@")[0]
        place = f"{login}@127.0.0.1:{self._port}" if login else f"127.0.0.1:{self._port}"
        path = "/0" if parts.scheme == "unix" else parts.path
        query = "" if parts.scheme == "unix" else parts.query
        return urlunsplit(("redis", place, path, query, ""))

    # -- lifecycle --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, family=socket.AF_INET
        )
        self._port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop listening and break every connection."""
        assert self._listener is not None  # noqa: S101 - entered before it is left
        await stop_accepting(self._listener)
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._listener.wait_closed()

    def __enter__(self) -> Self:
        """Start to listen, on a thread of its own."""
        self._thread = LoopThread("FaultProxy")
        self._thread.call(self.__aenter__())
        return self

    def __exit__(self, *_exc: object) -> None:
        """Stop listening, break every connection, end the thread."""
        if self._thread is not None:
            self._thread.call(self.__aexit__())
            self._thread.stop()

    # -- single faults ----------------------------------------------------------------------------

    def cut(self) -> None:
        """Close every open connection (FIN); new ones are accepted."""
        self._now(lambda: self._break_all("cut"))

    def reset(self) -> None:
        """Reset every open connection (RST); data in flight is lost."""
        self._now(lambda: self._break_all("reset"))

    def heal(self) -> None:
        """Switch every fault off; stalled connections continue with the data they held."""
        self.faults.heal()

    def _now(self, act: Callable[[], None]) -> None:
        """Run it on the thread of the loop, and wait for it; callable from any thread."""
        if self._thread is None:
            act()
            return

        async def acted() -> None:
            act()

        self._thread.call(acted())

    def _break_all(self, how: str) -> None:
        for ends in list(self._links):
            self.counts[how] += 1
            _break(ends, reset=how == "reset")

    # -- one connection ---------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        self._serving.add(task)
        try:
            if self.faults.refuse:
                self.counts["refused"] += 1
                _abort(client)
                return
            self.counts["connections"] += 1
            await self._join(reader, client)
        except OSError:
            # The server is unreachable: reset the connection of the client.
            _abort(client)
        except asyncio.CancelledError:
            # The proxy ends.
            _abort(client)
        finally:
            self._serving.discard(task)

    async def _join(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        parts = urlsplit(self.target)
        if parts.scheme == "unix":
            answers, server = await asyncio.open_unix_connection(parts.path)
        else:
            answers, server = await asyncio.open_connection(parts.hostname, parts.port or 6379)
        ends = _Ends(client, server)
        link = Link(self.faults, self.counts, self._chance, lambda: _break(ends, reset=False))
        ends.tasks = [
            asyncio.create_task(link.requests(reader, server)),
            asyncio.create_task(link.replies(answers, client)),
        ]
        self._links.add(ends)
        try:
            await asyncio.wait(ends.tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Data that is not sent yet would keep it open.
            server.transport.abort()
            raise
        finally:
            self._links.discard(ends)
            for task in ends.tasks:
                task.cancel()
            # Before the wait, which may be cancelled.
            for end in (server, client):
                end.close()
            await asyncio.gather(*ends.tasks, return_exceptions=True)
            for end in (server, client):
                with contextlib.suppress(OSError):
                    await end.wait_closed()


async def stop_accepting(listener: asyncio.Server) -> None:
    """Close a server; return once the tasks of all connections run that it has accepted.

    A task that is cancelled before it runs, or a server that is closed before the transport is
    made, would leave the connection open.
    """
    loop = listener.get_loop()
    for listening in listener.sockets:
        loop.remove_reader(listening)
    # The transport, its protocol, the task, its first step.
    for _ in range(4):
        await asyncio.sleep(0)
    listener.close()


def _abort(end: asyncio.StreamWriter) -> None:
    """End a connection with a RST."""
    connection = end.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_INET:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.transport.abort()


def _break(ends: _Ends, *, reset: bool) -> None:
    if reset:
        _abort(ends.client)
        _abort(ends.server)
    for task in ends.tasks:
        task.cancel()
