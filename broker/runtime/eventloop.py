"""The event loop of our own threads and processes: a slow name server does not block it.

asyncio resolves host names on a few threads and joins them when the loop closes. Without a working
name server a lookup takes 20 seconds or more, which would delay `close()` and Ctrl-C, and a few of
them would block all other lookups. An event loop of the caller keeps the behaviour of asyncio.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from broker.runtime.threads import call_on_thread

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
        """Resolve a name on a thread of its own; concurrent equal lookups share it.

        Raises:
            OSError: it cannot be resolved, or no thread can be started.
        """
        lookup = (host, port, family, type, proto, flags)
        answer = self._lookups.get(lookup)
        if answer is None:
            # Kept only once the thread runs: nothing would ever end a lookup that did not start.
            answer = call_on_thread(lambda: socket.getaddrinfo(*lookup), f"lookup {host}")
            self._lookups[lookup] = answer
            answer.add_done_callback(lambda done: self._forget(lookup, done))
        # A cancelled caller must not cancel the lookup of the others.
        return await asyncio.shield(answer)

    def _forget(self, lookup: _Lookup, answer: asyncio.Future[Any]) -> None:
        del self._lookups[lookup]
        if not answer.cancelled():
            # If every caller was cancelled, the error must still be retrieved.
            answer.exception()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine like `asyncio.run`, on the loop of this module."""
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(work)
