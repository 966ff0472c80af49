"""Detect another event loop: an object's tasks and connections belong to the one that opened it."""

from __future__ import annotations

import asyncio

from broker.errors import WrongLoopError


class HomeLoop:
    """Knows which event loop opened an object.

    Args:
        what: the object, for the error text.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """Remember the running loop.

        Raises:
            WrongLoopError: none of asyncio is running, as under trio.
        """
        self._loop = self._running()

    def check(self) -> None:
        """Return if the running loop opened the object, or none has opened it.

        Raises:
            WrongLoopError: it is another loop.
        """
        loop = self._loop
        if loop is None or self._running() is loop:
            return
        if loop.is_closed():
            raise WrongLoopError(
                f"{self._what} was opened on an event loop that has ended, as after another "
                "asyncio.run(); make a new one in this loop, and close it there"
            )
        raise WrongLoopError(
            f"{self._what} was opened on another event loop; use it there, for example through "
            "asyncio.run_coroutine_threadsafe(), or make a new one in this loop"
        )

    @property
    def has_ended(self) -> bool:
        """Whether the loop that opened the object is closed."""
        return self._loop is not None and self._loop.is_closed()

    def _running(self) -> asyncio.AbstractEventLoop:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoopError(
                f"{self._what} needs an event loop of asyncio, and none is running here; with trio "
                "or without a loop use broker.Producer and broker.Replica instead"
            ) from None
