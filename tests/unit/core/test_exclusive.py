"""Calls that are interrupted on their own thread: by calls of handlers, and by their exceptions."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any

import pytest

from broker.core.buffer import ProducerBuffer
from broker.core.fast_path import FastSet
from broker.errors import BufferFullError, ReentrantError
from broker.protocol.codec import decode_chunk
from broker.protocol.operations import OP_INCREMENT, OP_SET

FILES = ("buffer.py", "columns.py", "lane.py", "fast_path.py", "exclusive.py")


class Interruption(BaseException):
    """What a signal handler raises."""


class Writer(FastSet[None]):
    """A producer without an engine."""

    def __init__(self, buffer: ProducerBuffer) -> None:
        super().__init__()
        self.buffer = buffer
        self._open_fast_path(buffer.plain_keys, lambda _: None)

    def _set_exactly(self, key: str, value: Any) -> None:
        self.buffer.add(0, OP_SET, key, value, 20, None, 1.0)


def new_buffer() -> ProducerBuffer:
    """Return an empty buffer that closes its columns at every tenth delta."""
    return ProducerBuffer(
        node="n",
        shards=1,
        max_bytes=1 << 20,
        max_count=10,
        chunk_bytes=1 << 16,
        keep_s=0.0,
        keep_bytes=0,
    )


@cache
def points(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions before which Python calls signal handlers."""
    found, is_one = set(), True
    for instruction in dis.get_instructions(code):
        if is_one:
            found.add(instruction.offset)
        is_one = any(word in instruction.opname for word in ("CALL", "RESUME", "JUMP_BACKWARD"))
    return frozenset(found)


def at_each_step(call: Callable[[], object], act: Callable[[], object], step: int) -> bool:
    """Do something at one point of a call where a signal can arrive; false if it has fewer."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in points(frame.f_code):
            left -= 1
            if left == 0:
                sys.settrace(None)
                act()
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return left <= 0


def sent(buffer: ProducerBuffer) -> list[tuple[str, Any]]:
    """Return all deltas in the order in which they are sent, and have them accepted."""
    buffer.close_all()
    found: list[tuple[str, Any]] = []
    while (packed := buffer.next_chunk(0, 2.0, 0.0, 0)[0]) is not None:
        for run in decode_chunk(packed.data).runs:
            found += zip(run.keys, run.values or (), strict=True)
        buffer.accepted(0, 2.0)
    counts = buffer.counts()
    assert counts.buffered == counts.accepted == len(found)
    assert (counts.pending, buffer.bytes) == (0, 0)
    return found


CALLS: dict[str, Callable[[ProducerBuffer], object]] = {
    "add": lambda buffer: buffer.add(0, OP_SET, "new", 1, 20, None, 1.0),
    "add another kind": lambda buffer: buffer.add(0, OP_INCREMENT, "new", 1, 20, None, 1.0),
    "add_many": lambda buffer: buffer.add_many(0, ["new", "other"], [1, 2], 40, None, 1.0),
    "close_all": lambda buffer: buffer.close_all(),
    "counts": lambda buffer: buffer.counts(),
}


@pytest.mark.parametrize("before", [3, 9, 14])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_left_at_any_point_loses_nothing(name: str, before: int) -> None:
    """An exception at each point: every earlier delta is sent, and the counts add up."""

    def interrupt() -> None:
        raise Interruption

    step = 0
    while True:
        step += 1
        buffer = new_buffer()
        writer = Writer(buffer)
        for number in range(before):
            writer.set(f"k{number % 5}", number)
        try:
            if not at_each_step(partial(CALLS[name], buffer), interrupt, step):
                break
        except Interruption:
            pass
        content = dict(sent(buffer))
        content.pop("new", None)
        content.pop("other", None)
        expected = {f"k{number % 5}": number for number in range(before)}
        assert content == expected, (step, content)
    assert step > 10


@pytest.mark.parametrize("call", [ProducerBuffer.counts, ProducerBuffer.check_not_interrupted])
def test_a_call_within_another_one_raises_at_once(
    call: Callable[[ProducerBuffer], object],
) -> None:
    """At each point of a call, another one on the same thread returns or raises; none waits."""
    refused = 0
    step = 0
    while True:
        step += 1
        buffer = new_buffer()
        raised: list[ReentrantError] = []

        def look(buffer: ProducerBuffer = buffer, raised: list[ReentrantError] = raised) -> None:
            try:
                call(buffer)
            except ReentrantError as error:
                raised.append(error)

        if not at_each_step(partial(CALLS["add"], buffer), look, step):
            break
        refused += len(raised)
        assert sent(buffer) == [("new", 1)]
    assert refused > 10


@pytest.mark.parametrize("name", CALLS)
def test_a_single_write_within_another_call_is_refused(name: str) -> None:
    """At each point within a call the exact path raises; it never changes what is half changed."""
    step, within = 0, 0
    while True:
        step += 1
        buffer = new_buffer()
        raised: list[bool] = []

        def write(buffer: ProducerBuffer = buffer, raised: list[bool] = raised) -> None:
            if buffer.is_interrupted:
                with pytest.raises(ReentrantError):
                    CALLS["add"](buffer)
                raised.append(True)

        if not at_each_step(partial(CALLS[name], buffer), write, step):
            break
        within += len(raised)
    assert within > 5


def test_a_write_within_another_call_is_put_off() -> None:
    """It is done when the interrupted call is over, also if that had no room; none is forgotten."""
    buffer = new_buffer()

    def write() -> None:
        assert buffer.is_interrupted
        buffer.put_off(lambda: buffer.add(0, OP_SET, "late", 2, 20, None, 1.0))

    done = False

    def once() -> int:
        nonlocal done
        if not done:
            done = True
            write()
        return 1

    class Size(int):
        def __add__(self, other: int) -> int:
            return other + once()

    buffer.max_bytes = 1
    buffer.add(0, OP_SET, "first", 1, Size(1), None, 1.0)
    assert sent(buffer) == [("first", 1), ("late", 2)]


def test_writes_that_are_put_off_are_limited() -> None:
    """A handler that writes for ever gets an error, not all of the memory."""
    buffer = new_buffer()
    for _ in range(1000):
        buffer.put_off(lambda: None)
    with pytest.raises(BufferFullError, match="1000 writes of a signal handler"):
        buffer.put_off(lambda: None)


def test_another_thread_waits_as_usual() -> None:
    """Only the thread that is in a call is refused; others wait for their turn."""
    buffer = new_buffer()
    inside, go_on = threading.Event(), threading.Event()

    class Size(int):
        def __add__(self, other: int) -> int:
            inside.set()
            go_on.wait(10)
            return other + 1

    one = threading.Thread(target=lambda: buffer.add(0, OP_SET, "a", 1, Size(1), None, 1.0))
    one.start()
    assert inside.wait(10)
    assert not buffer.is_interrupted
    other = threading.Thread(target=lambda: buffer.add(0, OP_SET, "b", 2, 20, None, 1.0))
    other.start()
    go_on.set()
    one.join(10)
    other.join(10)
    assert sent(buffer) == [("a", 1), ("b", 2)]
