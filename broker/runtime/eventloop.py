"""The event loop of our own threads and processes: a name server that hangs cannot hold it up.

asyncio looks names up on a few threads, and waits for them when it ends. Where no name server
answers a lookup takes 20 seconds or more: so long would `close()` and Ctrl-C last, and a handful of
such lookups would keep all others waiting. Who brings a loop of his own has asyncio's behaviour.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

# As `socket.getaddrinfo` takes them: host, port, family, type, protocol, flags.
_Question = tuple[Any, ...]


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's own, but that it waits for no name server when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[_Question, asyncio.Future[Any]] = {}

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
        """Look a name up on a thread of its own; one for all who ask the same meanwhile."""
        question = (host, port, family, type, proto, flags)
        answer = self._asked.get(question)
        if answer is None:
            answer = self._asked[question] = self.create_future()
            answer.add_done_callback(lambda done: self._answered(question, done))
            threading.Thread(
                target=self._look_up, args=(question, answer), name=f"lookup {host}", daemon=True
            ).start()
        # One who gives up does not take the answer from the others.
        return await asyncio.shield(answer)

    def _look_up(self, question: _Question, answer: asyncio.Future[Any]) -> None:
        try:
            found, error = socket.getaddrinfo(*question), None
        except OSError as caught:
            found, error = [], caught
        # The loop may be closed by now, and nobody wants to know any more.
        with suppress(RuntimeError):
            self.call_soon_threadsafe(_settle, answer, found, error)

    def _answered(self, question: _Question, answer: asyncio.Future[Any]) -> None:
        del self._asked[question]
        if not answer.cancelled():
            # Maybe everybody gave up: then its error is no news to anybody.
            answer.exception()


def _settle(answer: asyncio.Future[Any], found: list[Any], error: OSError | None) -> None:
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of its own until it is done, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(work)
