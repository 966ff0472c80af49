"""The event loop of our own threads and processes: a slow name server does not block it.

asyncio resolves host names on a few threads and joins them when the loop closes. Without a working
name server a lookup takes 20 seconds or more, which would delay `close()` and Ctrl-C, and a few of
them would block all other lookups. An event loop of the caller keeps the behaviour of asyncio.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

# The arguments of `socket.getaddrinfo`: host, port, family, type, protocol, flags.
_Lookup = tuple[Any, ...]


class EventLoop(asyncio.SelectorEventLoop):
    """The loop of asyncio, except that closing it does not wait for name lookups."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[_Lookup, asyncio.Future[Any]] = {}

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Resolve a name on a thread of its own; concurrent equal lookups share it."""
        lookup = (host, port, family, type, proto, flags)
        answer = self._lookups.get(lookup)
        if answer is None:
            answer = self._lookups[lookup] = self.create_future()
            answer.add_done_callback(lambda done: self._forget(lookup, done))
            threading.Thread(
                target=self._look_up, args=(lookup, answer), name=f"lookup {host}", daemon=True
            ).start()
        # A cancelled caller must not cancel the lookup of the others.
        return await asyncio.shield(answer)

    def _look_up(self, lookup: _Lookup, answer: asyncio.Future[Any]) -> None:
        try:
            found, error = socket.getaddrinfo(*lookup), None
        except OSError as caught:
            found, error = [], caught
        # The loop may be closed by now.
        with suppress(RuntimeError):
            self.call_soon_threadsafe(_set_result, answer, found, error)

    def _forget(self, lookup: _Lookup, answer: asyncio.Future[Any]) -> None:
        del self._lookups[lookup]
        if not answer.cancelled():
            # If every caller was cancelled, the error must still be retrieved.
            answer.exception()


def _set_result(answer: asyncio.Future[Any], found: list[Any], error: OSError | None) -> None:
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine like `asyncio.run`, on the loop of this module."""
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(work)
