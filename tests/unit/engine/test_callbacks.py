"""A user's function is called on a thread of its own, whatever it does."""

from __future__ import annotations

import itertools
import logging
import threading
from queue import SimpleQueue

import pytest

from broker.core.status import STATUSES_LIMIT, StatusQueue
from broker.engine.callbacks import call_for_each
from broker.model import Status, StatusChange
from broker.runtime.bell import Bell
from broker.testing.waiting import eventually


def change(number: int) -> StatusChange:
    """Return one of a chain of changes."""
    ends = (Status.LIVE, Status.STALE)
    return StatusChange(ends[number % 2], ends[(number + 1) % 2], str(number))


def test_each_call_has_the_same_thread_and_its_turn() -> None:
    """In order, not on the caller's thread; items queued before the end are delivered."""
    calls: SimpleQueue[tuple[str, str]] = SimpleQueue()
    bell = Bell()
    queue = StatusQueue(bell.ring)
    call_for_each(
        lambda one: calls.put((one.reason, threading.current_thread().name)), queue, bell, "mine"
    )
    for number in range(3):
        queue.put([change(number)])
    queue.close()
    assert [calls.get(timeout=10) for _ in range(3)] == [(str(n), "mine") for n in range(3)]
    eventually(lambda: "mine" not in [thread.name for thread in threading.enumerate()])


def test_what_it_raises_is_logged_and_the_next_follows(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the user's code ends nothing."""
    calls: SimpleQueue[str] = SimpleQueue()
    bell = Bell()
    queue = StatusQueue(bell.ring)

    def fail(one: StatusChange) -> None:
        calls.put(one.reason)
        raise ValueError(f"no {one.reason}")

    with caplog.at_level(logging.ERROR, "broker.engine.callbacks"):
        call_for_each(fail, queue, bell, "mine")
        queue.put([change(0)])
        queue.put([change(1)])
        assert [calls.get(timeout=10) for _ in range(2)] == ["0", "1"]
        # A record is listed before its text is written.
        eventually(lambda: "ValueError: no 1" in caplog.text)
        assert len(caplog.records) == 2
    queue.close()
    assert "callback_failed owner=mine" in caplog.text


def test_a_call_that_blocks_holds_up_nobody() -> None:
    """The caller never blocks, and the queue stays bounded, wake-ups included."""
    go_on = threading.Event()
    calls: list[StatusChange] = []
    bell = Bell()
    queue = StatusQueue(bell.ring)

    def block(one: StatusChange) -> None:
        calls.append(one)
        go_on.wait(30)

    call_for_each(block, queue, bell, "mine")
    queue.put([change(0)])
    eventually(lambda: len(calls) == 1)
    for number in range(1, 5 * STATUSES_LIMIT):
        queue.put([change(number)])
        assert len(queue._waiting) <= STATUSES_LIMIT
    assert bell._rung.qsize() <= 1
    go_on.set()
    queue.close()
    eventually(lambda: calls[-1].reason == str(5 * STATUSES_LIMIT - 1))
    assert all(one.before is before.after for before, one in itertools.pairwise(calls))
