"""What our connections do in another way than redis-py, and with the same result."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from redis.asyncio.connection import Connection
from redis.exceptions import DataError

from broker.backend.sockets import TCP, Shared
from tests.unit.strategies import TEXTS

OURS = TCP(redirects=False, shared=Shared(), host="127.0.0.1")
THEIRS = Connection(host="127.0.0.1")
ARGUMENTS = st.one_of(TEXTS, st.binary(max_size=20), st.integers(), st.floats())


@given(st.sampled_from(["SET", "CLIENT SETNAME", "EVALSHA"]), st.lists(ARGUMENTS, max_size=6))
def test_a_command_has_the_bytes_that_redis_py_gives_it(name: str, arguments: list[Any]) -> None:
    """Whatever its arguments, alone and in a pipeline."""
    command = (name, *arguments)
    assert b"".join(OURS.pack_command(*command)) == b"".join(THEIRS.pack_command(*command))
    many = [command, ("PING",), command]
    assert b"".join(OURS.pack_commands(many)) == b"".join(THEIRS.pack_commands(many))


@pytest.mark.parametrize("size", [0, 5999, 6000, 6001, 1 << 20])
def test_a_long_argument_is_sent_whole(size: int) -> None:
    """Whatever way it takes into the socket."""
    command = ("RPUSH", "k", bytes(size), "after")
    assert b"".join(OURS.pack_command(*command)) == b"".join(THEIRS.pack_command(*command))


@pytest.mark.parametrize("argument", [None, True, [1], object()])
def test_what_is_no_argument_is_refused(argument: Any) -> None:
    """Before anything is sent."""
    with pytest.raises(DataError):
        OURS.pack_command("SET", "k", argument)


def test_text_that_is_not_unicode_is_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(UnicodeEncodeError):
        OURS.pack_command("SET", "k", "\ud800")


def test_a_number_without_a_text_is_refused() -> None:
    """The library that packs would end the process."""
    with pytest.raises(ValueError, match="limit"):
        OURS.pack_command("WAIT", 10**5000, 0)
