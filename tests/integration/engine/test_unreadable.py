"""A value that its writer packed badly is an error for whoever reads that key, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from broker import Inspector, Producer, Replica, UnreadableValueError
from broker.aio import Replica as AioReplica
from broker.protocol.codec import encode_chunk
from broker.protocol.messages import Chunk, Run
from broker.protocol.operations import OP_INCREMENT, OP_SET
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.engine.test_misuse import NODE, append_raw, nested
from tests.integration.running_workers import NewServing, write_snapshots

# Packed by a careless writer: byte c1, cut short, a map key that is a number, a foreign extension,
# text that is not UTF-8, too many levels.
BAD = {
    "bad/c1": b"\xc1",
    "bad/cut": b"\x92\x01",
    "bad/key": b"\x81\x01\x02",
    "bad/extension": b"\xd4\x05\x00",
    "bad/text": b"\x91\xa1\xff",
    "bad/levels": b"\x91" * 33 + b"\xc0",
    "bad/none": b"",
}
GOOD = {"good/number": 5, "good/map": {"a": [1, 2]}, "good/text": "x"}


def chunk(number: int) -> bytes:
    """Return a chunk with good and bad values, and an increment of a bad one."""
    cells = {**BAD, "good/number": 5, "good/map": b"\x81\xa1a\x92\x01\x02", "good/text": "x"}
    runs = [
        Run(OP_SET, [*cells], [*cells.values()]),
        Run(OP_INCREMENT, ["bad/c1", "good/number"], [1, 0]),
    ]
    return encode_chunk(Chunk(NODE, 1, number, 0, runs))


@pytest.fixture
def live(server: Server, namespace: str, serving: NewServing) -> Iterator[Replica]:
    """Give a replica that shows a chunk with values that nobody can read."""
    serving(server.url, namespace)
    with Replica(server.url, namespace=namespace) as replica:
        replica.wait_live(10)
        changes = replica.changes()
        append_raw(server.url, namespace, [chunk(1)], deltas=len(BAD) + len(GOOD) + 2)
        eventually(lambda: len(replica) == len(BAD) + len(GOOD))
        assert {next(changes).key for _ in range(len(GOOD))} == {*GOOD}
        yield replica


def test_a_key_that_cannot_be_read_raises_by_name(live: Replica) -> None:
    """Each of them, whichever way one key is asked for, and is counted; the others are read."""
    before = live.stats().values_unreadable
    for key in BAD:
        with pytest.raises(UnreadableValueError, match=f"the value of key '{key}' cannot be read"):
            live[key]
        with pytest.raises(UnreadableValueError) as caught:
            live.get(key)
        assert (caught.value.key, caught.value.node) == (key, NODE)
        assert f"mend who writes as '{NODE}'" in str(caught.value)
        assert key in live
    assert live.stats().values_unreadable == before + 2 * len(BAD)
    assert {key: live[key] for key in GOOD} == GOOD
    assert "lacks" not in live


def test_reads_of_many_keys_leave_it_out(live: Replica, caplog: pytest.LogCaptureFixture) -> None:
    """One writer does not stop who reads the keys of others; it is counted and named."""
    before = live.stats().values_unreadable
    with caplog.at_level(logging.WARNING, "broker"):
        assert live.snapshot()[0] == dict(live.items()) == GOOD
    assert len(list(live.values())) == len(GOOD)
    assert {*live} == {*BAD, *GOOD}
    assert live.stats().values_unreadable == before + 3 * len(BAD)
    named = live.stats().unreadable
    assert len(named) == 5
    assert all(one.startswith("'bad/") and f" by {NODE}: " in one for one in named)


def test_nothing_else_is_affected(server: Server, namespace: str, live: Replica) -> None:
    """No chunk is skipped, the increments around it count, and every copy is the same."""
    stats = live.stats()
    assert (stats.chunks_skipped, stats.deltas_skipped) == (0, 0)
    assert stats.deltas_refused == 1
    assert stats.refused == (f"'bad/c1' by {NODE}",)
    assert live.verify().is_equal
    write_snapshots(server.url, namespace)
    with (
        Replica(server.url, namespace=namespace) as late,
        Inspector(server.url, namespace=namespace) as inspector,
        Producer(server.url, namespace=namespace, node="other") as producer,
    ):
        late.wait_live(10)
        assert late.snapshot()[0] == GOOD
        # It loaded the full state, which does not say who wrote it.
        with pytest.raises(UnreadableValueError, match="mend the program that wrote it"):
            late["bad/cut"]
        assert {*late} == {*live}
        assert late.stats().keys_damaged == 0
        assert late.verify().is_equal
        assert inspector.state() == inspector.folded() == GOOD
        assert inspector.get("good/map") == (True, GOOD["good/map"])
        with pytest.raises(UnreadableValueError, match="'bad/c1'"):
            inspector.get("bad/c1")
        producer.set("bad/c1", {"mended": True})
        token = producer.flush(10)
        for replica in (live, late):
            replica.wait_for(token, 10)
            assert replica["bad/c1"] == {"mended": True}


def test_readers_of_changes_get_the_others(server: Server, namespace: str, live: Replica) -> None:
    """With asyncio too: the iteration goes on, and what was left out is counted."""

    async def scenario() -> None:
        async with AioReplica(server.url, namespace=namespace) as replica:
            await replica.wait_live(10)
            changes = replica.changes("good/")
            everything = replica.changes()
            append_raw_in_thread = asyncio.to_thread(
                append_raw, server.url, namespace, [chunk(1)], len(BAD) + len(GOOD) + 2
            )
            await append_raw_in_thread
            assert {(await anext(changes)).key for _ in range(len(GOOD))} == {*GOOD}
            assert {(await anext(everything)).key for _ in range(len(GOOD))} == {*GOOD}
            assert replica.stats().values_unreadable >= len(BAD)

    asyncio.run(scenario())
    assert {key: live[key] for key in GOOD} == GOOD


def test_a_value_of_32_levels_is_read(server: Server, namespace: str, live: Replica) -> None:
    """The limit is the one of producers."""
    with Producer(server.url, namespace=namespace, node="deep") as producer:
        producer.set("deep", nested(32))
        live.wait_for(producer.flush(10), 10)
    assert live["deep"] == nested(32)
