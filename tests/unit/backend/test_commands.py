"""The typed methods of the Lua commands, on a client that answers from a list."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import pytest

from broker.backend.commands import NAMES, Commands
from broker.backend.commands.flush import MAX_REASON_CHARS, one_line
from broker.backend.commands.producer import wait_unsupported_error
from broker.backend.commands.scripts import READERS, Scripts, source
from broker.backend.replies import (
    Accepted,
    Busy,
    Drained,
    DrainLimits,
    Lease,
    LogFull,
    Missing,
    NotDue,
)
from broker.core.sent_chunks import Packed
from broker.errors import FencedError
from broker.protocol.messages import Position
from broker.protocol.names import ShardKeys

KEYS = ShardKeys.of("n", 0, 1)
LEASE = Lease("s1", 1, 9000, b"mark")

T = TypeVar("T")
ACCEPTED = struct.pack(">Q8sQII", 7, b"epoch--1", 0, 50, 10)
FULL = struct.pack(">Q8sQII", 7, b"epoch--1", 1, 50, 10)


class Answering:
    """A client that answers every script with the same reply."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.called: list[str] = []

    async def evalsha(self, *_: Any) -> Any:
        """Answer a script that writes."""
        self.called.append("evalsha")
        return self.reply

    async def evalsha_ro(self, *_: Any) -> Any:
        """Answer a script that only reads."""
        self.called.append("evalsha_ro")
        return self.reply


def commands(reply: Any) -> Commands:
    """Return the commands on a client that always gives this reply."""
    return Commands(cast("Any", Answering(reply)))


def result(call: Coroutine[Any, Any, T]) -> T:
    """Return what one call gives."""
    return asyncio.run(call)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (ACCEPTED, Accepted(7, b"epoch--1", 50, 10, is_full=False, duplicate=False)),
        (FULL, Accepted(7, b"epoch--1", 50, 10, is_full=True, duplicate=False)),
        ([b"DUPLICATE", FULL], Accepted(7, b"epoch--1", 50, 10, is_full=True, duplicate=True)),
        ([b"MISSING", 4, 40], Missing(4, 40)),
        ([b"BUSY", 1 << 20, 7], Busy(1 << 20, 7)),
    ],
)
def test_each_reply_of_append_has_its_type(reply: Any, expected: object) -> None:
    """Accepted, accepted before, missing and busy chunks are told apart."""
    chunk = Packed(1, 3, 3, 1.0, 0, b"chunk")
    call = commands(reply).append(
        *(KEYS, "n1", 1, b"8 bytes!", [chunk]), now=1.0, max_age_ms=1, max_count=1, pending_limit=1
    )
    assert result(call) == [expected]


def test_a_name_that_another_process_took_is_an_error_that_says_so() -> None:
    """`open` raises FencedError with the name and the newer incarnation."""
    call = commands([b"FENCED", 9]).open(
        KEYS, "n1", 8, b"8 bytes!", chunk=0, deltas=0, epoch=b"epoch--1"
    )
    with pytest.raises(FencedError, match=r"'n1' \(incarnation 9\)"):
        result(call)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ([b"BATCH", 5, 2, 9, 3, 400, 12, -1, 0], Drained(5, 2, 9, 3, 400, 12, -1, 0)),
        ([b"LOGFULL", 300], LogFull(300)),
        ([b"WAIT", 40], NotDue(40)),
    ],
)
def test_each_reply_of_drain_has_its_type(reply: list[Any], expected: object) -> None:
    """A batch, a full log and "not due" are told apart."""
    assert result(commands(reply).drain(KEYS, 0, b"batch--1", DrainLimits())) == expected


@pytest.mark.parametrize(
    ("reply", "words"), [([b"LOST"], "no longer holds the lease"), ([b"REWRITTEN"], "less history")]
)
def test_a_scheduler_that_may_not_write_is_reported_why(reply: list[Any], words: str) -> None:
    """A lost lease and a rewritten history are different errors."""
    with pytest.raises(FencedError, match=words):
        result(commands(reply).snapshot_begin(KEYS, LEASE, Position()))


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_read_need_only_the_right_to_read(name: str) -> None:
    """They are called with EVALSHA_RO, all others with EVALSHA."""
    client = Answering([])
    result(Scripts(cast("Any", client)).run(name, ["key"]))
    assert client.called == ["evalsha_ro" if name in READERS else "evalsha"]


def test_readers_write_nothing() -> None:
    """No script that is called as a reader calls a command that writes or publishes."""
    assert not [name for name in READERS if "HSET" in source(name) or "PUBLISH" in source(name)]


def test_a_reason_is_one_line_of_limited_length() -> None:
    """Line breaks become spaces, and the rest of a long text is cut off."""
    assert one_line(" a\n\tb ") == "a b"
    assert len(one_line("x" * (2 * MAX_REASON_CHARS))) == MAX_REASON_CHARS


def test_what_keeps_a_server_from_waiting_for_disks_is_reported_with_its_fix() -> None:
    """No append-only file, no WAITAOF; any other error is not ours."""
    no_file = wait_unsupported_error(Exception("WAITAOF cannot be used when appendonly is off"))
    assert "CONFIG SET appendonly yes" in str(no_file)
    too_old = wait_unsupported_error(Exception("unknown command 'WAITAOF'"))
    assert "upgrade the server" in str(too_old)
    assert wait_unsupported_error(Exception("OOM")) is None
