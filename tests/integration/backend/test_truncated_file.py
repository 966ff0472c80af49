"""A server comes back with its append-only file cut off, at any place: no page is missed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from broker import Inspector, Producer, Replica
from broker.backend import page_sizes
from broker.backend.commands import Commands
from broker.backend.replies import Lease
from broker.errors import ConnectError, FencedError
from broker.protocol.fields import pack_field
from broker.testing.server import KINDS, Server
from tests.conftest import OwnServer
from tests.integration.lua_shard import HOUR, MARK, Shard
from tests.integration.running_workers import NewServing, joined, snapshot_worker

PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "yes")
PAGES = 3
ONE = (1).to_bytes(8)


@pytest.fixture(params=KINDS)
def persistent(request: pytest.FixtureRequest, own_server: OwnServer) -> Server:
    """Give a server that has each command on disk before it answers."""
    return own_server(*PERSISTENT, kind=request.param)


def file_of(directory: Path) -> Path:
    """Return the append-only file of a server's data directory."""
    (found,) = (directory / "appendonlydir").glob("*.incr.aof")
    return found


def ends_of_commands(data: bytes) -> Iterator[int]:
    """Yield where each command of an append-only file ends."""
    at = 0
    while at < len(data):
        end = data.index(b"\n", at) + 1
        words = int(data[at + 1 : end])
        assert data[at : at + 1] in (b"*", b"#")
        if data[at : at + 1] == b"*":
            at = end
            for _ in range(words):
                end = data.index(b"\n", at) + 1
                at = end + int(data[at + 1 : end]) + 2
        else:
            # A comment with the time.
            at = end
            continue
        yield at


def fields_of(number: int) -> dict[bytes, bytes]:
    """Return the fields of a page."""
    return {
        b"p%d/%d" % (number, n): pack_field(b"p%d/%d" % (number, n), 1, number) for n in range(2)
    }


def test_wherever_the_file_is_cut_a_lost_page_is_noticed(
    persistent: Server, namespace: str
) -> None:
    """A page is kept or lost with its mark, so what comes after a lost one is refused.

    Every cut is tried: after each command since the full state began, and in the middle of it.
    """
    shard = Shard(persistent, namespace)
    shard.batches(1)
    shard.take()
    assert shard.begin(1, ONE)[0] == b"OK"
    file = file_of(persistent.directory)
    begun = file.stat().st_size
    lease = Lease("s1", 1, HOUR, MARK)
    marks = [lease.mark]
    for number in range(PAGES):
        assert shard.page(fields_of(number), (b"p0/0",), mark=lease.mark) == [b"OK"]
        lease = lease.after_page()
        marks.append(lease.mark)
    shard.close()
    persistent.kill()
    data = file.read_bytes()
    ends = [begun, *(end for end in ends_of_commands(data) if end > begun)]
    assert ends[-1] == len(data)
    cuts = sorted({*ends, *((one + other) // 2 for one, other in pairwise(ends))})
    kept: list[int] = []
    for cut in cuts:
        file.write_bytes(data[:cut])
        persistent.start()
        again = Shard(persistent, namespace)
        mark = again.hashes()["fold"]
        there = marks.index(mark)
        kept.append(there)
        expected = {k: v for n in range(there) for k, v in fields_of(n).items() if k != b"p0/0"}
        assert again.admin.hgetall(again.keys.state) == expected, cut
        before = again.lists()
        if there < PAGES:
            assert again.commit(1, ONE, mark=marks[-1]) == [b"REWRITTEN"], cut
            for number in range(there + 1, PAGES):
                assert again.page(fields_of(number), mark=marks[number]) == [b"REWRITTEN"], cut
            assert again.lists() == before
        else:
            assert again.commit(1, ONE, mark=marks[-1])[0] == b"OK"
        again.close()
        persistent.kill()
    assert kept == sorted(kept)
    assert set(kept) == set(range(PAGES + 1)), "no page was lost, or none was kept"


def test_a_scheduler_writes_a_lost_page_again(
    persistent: Server, namespace: str, serving: NewServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not commit without it; the next round gives every key its value."""
    monkeypatch.setattr(page_sizes, "KEYS", 10)
    sizes: list[int] = []
    real_page, real_commit = Commands.snapshot_page, Commands.snapshot_commit
    file = file_of(persistent.directory)

    async def page(self: Commands, *args: Any, **options: Any) -> None:
        await real_page(self, *args, **options)
        sizes.append(file.stat().st_size)

    async def commit(self: Commands, *args: Any, **options: Any) -> int:
        if len(sizes) == PAGES:
            persistent.kill()
            data = file.read_bytes()
            file.write_bytes(data[: sizes[-2]])
            persistent.start()
        while True:
            # The connections to the server before have to go first.
            with suppress(ConnectError):
                return await real_commit(self, *args, **options)

    workers = serving(persistent.url, namespace)
    with (
        Producer(persistent.url, namespace=namespace) as producer,
        Inspector(persistent.url, namespace=namespace) as inspector,
    ):
        content = {f"k{n}": n for n in range(10 * PAGES)}
        producer.set_many(content)
        producer.flush(10)
        with Replica(persistent.url, namespace=namespace) as replica:
            replica.wait_live(10)
            replica.wait_for(producer.flush(10), 10)
        workers.stop()
        monkeypatch.setattr(Commands, "snapshot_page", page)
        monkeypatch.setattr(Commands, "snapshot_commit", commit)

        async def write() -> None:
            async with joined(persistent.url, namespace) as session:
                worker = snapshot_worker(session)
                with pytest.raises(FencedError, match="less history"):
                    await worker.write_once()
                assert len(sizes) == PAGES
                assert inspector.status().shards[0].snapshot_offset == 0
                assert inspector.status().shards[0].state_keys == 10 * (PAGES - 1)
                written = await worker.write_once()
                assert written is not None

        asyncio.run(write())
        assert inspector.state() == content
        assert inspector.altered() == {}
