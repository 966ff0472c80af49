"""No caller waits for a name server longer than its timeout."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from broker.errors import BrokerError
from broker.runtime import eventloop
from broker.sync.loop_thread import LoopThread
from broker.testing.waiting import eventually

ANSWER = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 6379))]


class NameServer:
    """Answers for `slow.example` when it may, and for `wrong.example` that there is none."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked: Counter[str] = Counter()

    def __call__(self, host: str, *_rest: Any) -> list[Any]:
        """Stand in for `socket.getaddrinfo`."""
        self.asked[host] += 1
        if host == "wrong.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.may_answer.wait()
        return ANSWER


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """Give a name server."""
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    yield server
    server.may_answer.set()


def look_up(host: str = "slow.example") -> Any:
    """Return what asks for a name."""
    return asyncio.get_running_loop().getaddrinfo(host, 6379)


async def give_up() -> None:
    """Ask, and wait only for a moment."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await look_up()


def ends(thread: threading.Thread) -> None:
    """See a thread end."""
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_loop_ends_while_a_name_is_looked_up(names: NameServer) -> None:
    """A cancelled caller stays cancelled, and shutdown does not wait for the reply."""
    ends(threading.Thread(target=lambda: eventloop.run(give_up()), daemon=True))
    assert names.asked == {"slow.example": 1}
    # The answer comes when the loop is closed, and has no effect.
    names.may_answer.set()
    eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("lookup")])


def test_closing_waits_for_no_name_server(names: NameServer) -> None:
    """The thread of producers and replicas ends although a name lookup still waits."""
    loop = LoopThread("mine")
    loop.call(give_up())
    assert names.asked == {"slow.example": 1}
    ends(threading.Thread(target=loop.stop, daemon=True))
    assert loop.is_closed


def test_concurrent_lookups_of_a_name_share_one_answer(names: NameServer) -> None:
    """If one caller is cancelled, the others still get the answer. A later call looks up again."""

    async def ask() -> None:
        first, second, third = (asyncio.create_task(look_up()) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        names.may_answer.set()
        assert await asyncio.gather(second, third) == [ANSWER, ANSWER]
        assert names.asked == {"slow.example": 1}
        assert await look_up() == ANSWER

    eventloop.run(ask())
    assert names.asked == {"slow.example": 2}


def test_a_name_that_does_not_exist_is_an_error(names: NameServer) -> None:
    """All callers get the error of the operating system."""

    async def ask() -> list[BaseException]:
        return await asyncio.gather(
            *(look_up("wrong.example") for _ in range(2)), return_exceptions=True
        )

    found = eventloop.run(ask())
    assert [type(one) for one in found] == [socket.gaierror] * 2
    assert names.asked == {"wrong.example": 1}


def test_after_a_time_without_threads_names_are_looked_up_again(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that cannot be started is an error of the system; nothing waits for it later."""

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> None:
        with monkeypatch.context() as short:
            short.setattr(threading.Thread, "start", refused)
            for _ in range(2):
                with pytest.raises(OSError, match="cannot start the thread 'lookup"):
                    await look_up()
        names.may_answer.set()
        assert await look_up() == ANSWER

    eventloop.run(ask())
    assert names.asked == {"slow.example": 1}


def test_a_loop_thread_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor says what to raise, and closes the loop that it made."""

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(BrokerError, match=r"cannot start the thread 'mine'.*ulimit"):
        LoopThread("mine")


def test_connections_look_names_up_this_way(names: NameServer) -> None:
    """A connection of asyncio uses the lookup of this loop."""

    async def connect() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.open_connection("slow.example", 6379)

    ends(threading.Thread(target=lambda: eventloop.run(connect()), daemon=True))
    assert names.asked == {"slow.example": 1}
