"""A proxy in front of a server that loses replies and connections as a network does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from typing import Self

from broker.backend.commands import source
from broker.sync.loop_thread import LoopThread
from broker.testing.proxy import stop_accepting
from broker.testing.server import Server


def sha_of(command: str) -> bytes:
    """Return the SHA1 bytes that a call of one of our commands carries on the wire."""
    return hashlib.sha1(source(command).encode()).hexdigest().encode()  # noqa: S324


class Proxy:
    """Forwards bytes between clients and a server until a fault is switched on.

    Attributes:
        lose_replies_to: requests that contain these bytes are carried out, and then the connection
            breaks before the reply; counted in `lost`. None: none.
        lose_every: only every n-th such reply.
        rewrite: (old, new) in replies, of the same length.
        mute_after: a connection that asks for something with these bytes gets no answer any more,
            and stays open; counted in `muted`. None: none.
        drops_replies: what the server sends is thrown away.
        is_closed: new connections end at once.
    """

    def __init__(self, server: Server) -> None:
        self.lose_replies_to: bytes | None = None
        self.lose_every = 1
        self.lost = 0
        self.rewrite: tuple[bytes, bytes] | None = None
        self.drops_replies = False
        self.is_closed = False
        self.mute_after: bytes | None = None
        self.muted = 0
        self._matched = 0
        self._target = server.socket
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = LoopThread("proxy")
        self._listener = self._thread.call(self._listen())
        port = self._listener.sockets[0].getsockname()[1]
        login = f":{server.password}@" if server.password else ""
        self.url = f"redis://{login}127.0.0.1:{port}/0"

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, family=socket.AF_INET)

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # A server that is away, or a cut: the client's end has to be closed in any case.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                if not self.is_closed:
                    await self._connect(client, answer)
        finally:
            await _close(answer)
            self._tasks.discard(task)

    async def _connect(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        server, ask = await asyncio.open_unix_connection(str(self._target))
        doomed, mute = asyncio.Event(), asyncio.Event()
        pumps = [
            asyncio.create_task(self._requests(client, ask, doomed, mute)),
            asyncio.create_task(self._replies(server, answer, doomed, mute)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before the waits, which may be cancelled.
            ask.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await _close(ask)

    async def _requests(
        self,
        client: asyncio.StreamReader,
        ask: asyncio.StreamWriter,
        doomed: asyncio.Event,
        mute: asyncio.Event,
    ) -> None:
        while data := await client.read(1 << 16):
            if self.lose_replies_to is not None and self.lose_replies_to in data:
                self._matched += 1
                if self._matched % self.lose_every == 0:
                    doomed.set()
            if self.mute_after is not None and self.mute_after in data and not mute.is_set():
                self.muted += 1
                mute.set()
            ask.write(data)
            await ask.drain()

    async def _replies(
        self,
        server: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        doomed: asyncio.Event,
        mute: asyncio.Event,
    ) -> None:
        while data := await server.read(1 << 16):
            if doomed.is_set():
                self.lost += 1
                return
            if self.drops_replies or mute.is_set():
                continue
            if self.rewrite is not None:
                data = data.replace(*self.rewrite)
            answer.write(data)
            await answer.drain()

    def cut(self) -> None:
        """Break every open connection; new ones are accepted."""
        self._thread.call(self._cut())

    async def _cut(self) -> None:
        # Tasks of connections that were just taken have to begin before they can be ended.
        await asyncio.sleep(0)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._thread.call(self._end())
        self._thread.stop()

    async def _end(self) -> None:
        await stop_accepting(self._listener)
        await self._cut()
        await self._listener.wait_closed()


async def _close(end: asyncio.StreamWriter) -> None:
    end.close()
    with contextlib.suppress(OSError):
        await end.wait_closed()
