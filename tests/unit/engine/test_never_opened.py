"""An object of the asyncio face that was made and never opened."""

from __future__ import annotations

import asyncio

import pytest

from broker import ClosedError, NotLoadedError
from broker.aio import Replica

URL = "unix:///nowhere.sock"


def test_waiting_for_a_replica_that_is_not_open_says_so_at_once() -> None:
    """It names `open()`; a flush worker has nothing to do with it."""

    async def scenario() -> None:
        replica = Replica(URL)
        for call in (replica.wait_live(1), replica.wait_for("", 1), replica.verify()):
            with pytest.raises(ClosedError, match=r"not open; call open\(\)"):
                await call

    asyncio.run(scenario())


def test_reading_a_replica_that_is_not_open_gives_no_default() -> None:
    """Whether a key is absent is not known, so no read of any kind answers."""

    async def scenario() -> None:
        replica = Replica(URL)
        for read in (lambda: replica.get("flag", False), lambda: len(replica), replica.snapshot):
            with pytest.raises(NotLoadedError, match=r"not open; call open\(\)"):
                read()

    asyncio.run(scenario())
