"""Compressed chunks: all readers open the same, and refuse the same by what they declare."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import redis
import zstandard

from broker import Inspector, NamespaceMismatchError, Producer, Replica
from broker.protocol import features
from broker.protocol.codec import encode_chunk, encode_compressed
from broker.protocol.frames import MAGIC, FrameWriter
from broker.protocol.messages import Chunk, Run
from broker.protocol.names import ShardKeys, config_key
from broker.protocol.operations import OP_INCREMENT, OP_SET
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.check_sums import with_check
from tests.integration.engine.test_misuse import NODE, append_raw
from tests.integration.engine.test_verify import memory
from tests.integration.running_workers import NewServing, write_snapshots
from tests.integration.watched_shard import WatchedShard
from workers.cli.checks import Joined
from workers.cli.status import _compressed

CONTENT = {f"vehicle/{n:05d}": {"line": "M41", "speed": n % 80, "ok": True} for n in range(3000)}


def with_frame(frame: bytes) -> bytes:
    """A chunk that has these bytes as its compressed part."""
    return with_check(msgpack.packb([3, NODE, 1, 1, 0, frame]))


def logged(raw: redis.Redis, keys: ShardKeys) -> bytes:
    """All that the log holds."""
    entries: Any = raw.xrange(keys.log)
    return b"".join(value for _, fields in entries for value in fields.values())


def test_every_reader_opens_compressed_chunks(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """From the channel, from the log, and as the full state; both sides count what it saved."""
    producer = watched_shard.producer
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        for key, value in CONTENT.items():
            producer.set(key, value)
        producer.increment("n", 2)
        replica.wait_for(producer.flush(10), 10)
        content = CONTENT | {"n": 2}
        assert dict(replica.items()) == content
        sent, got = producer.stats(), replica.stats()
        assert sent.bytes_saved > 2 * sent.bytes
        assert got.chunks_compressed > 0
        assert got.bytes_uncompressed > 3 * got.bytes_compressed > 0
        assert got.bytes_received < 3 * sent.bytes
        assert (got.chunks_skipped, got.deltas_skipped) == (0, 0)
        assert replica.verify().is_equal
    watched_shard.publish()
    assert MAGIC in logged(raw, keys)
    assert b"vehicle/00001" not in logged(raw, keys)[-1000:]
    assert watched_shard.inspector.folded() == content
    # Before there is a full state all comes from the log, then nothing.
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as late:
        late.wait_live(10)
        assert dict(late.items()) == content
        assert late.stats().chunks_compressed > 0
    assert watched_shard.write() is not None
    assert watched_shard.agree() == content


def test_a_difference_is_found_behind_compressed_chunks(watched_shard: WatchedShard) -> None:
    """`verify` reads what differs from the log, too, and tells the right values."""
    watched_shard.producer.set_many({f"k{n:05d}": n for n in range(3000)})
    watched_shard.publish()
    assert watched_shard.producer.stats().bytes_saved > 0
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        memory(replica).values["k00007"] = 8
        (one,) = replica.verify().differences
        assert (one.key, one.replica, one.history) == ("k00007", 8, 7)


def test_rows_of_tables_are_compressed(watched_shard: WatchedShard) -> None:
    """Ids, names and columns, where they repeat."""
    names = [f"station/{n:06d}" for n in range(2000)]
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        watched_shard.producer.table("delay").set_many(names, [0.0] * 2000)
        replica.wait_for(watched_shard.producer.flush(10), 10)
        assert replica.table("delay")[names[-1]] == 0.0
        assert replica.stats().chunks_compressed > 0
        assert replica.verify().is_equal
    stats = watched_shard.producer.stats()
    assert stats.bytes_saved > 3 * stats.bytes
    watched_shard.publish()
    assert watched_shard.write() is not None
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as late:
        late.wait_live(10)
        assert len(late.table("delay")) == 2000


@pytest.mark.parametrize("compress", [0, 1, 19])
def test_the_setting_of_one_producer_is_no_matter_of_others(
    server: Server, namespace: str, serving: NewServing, compress: int
) -> None:
    """Producers with any level, or without, write to the same readers."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace, compress=compress) as producer,
        Producer(server.url, namespace=namespace) as other,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        producer.set_many(CONTENT)
        other.set_many({f"other/{n:05d}": "departed" for n in range(100)})
        for one in (producer, other):
            replica.wait_for(one.flush(10), 10)
        assert len(replica) == len(CONTENT) + 100
        assert bool(producer.stats().bytes_saved) is bool(compress)
        eventually(lambda: producer.stats().pending == other.stats().pending == 0)
        write_snapshots(server.url, namespace)
        with Inspector(server.url, namespace=namespace) as inspector:
            assert inspector.state() == dict(replica.items())
        assert other.stats().bytes_saved > 0


def test_a_namespace_without_the_word_has_plain_chunks(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A producer compresses nothing there, and a chunk that is compressed is refused by all."""
    made = {"protocol": 3, "shards": 1, "created": 0}
    raw.hset(config_key(namespace), mapping=made)  # type: ignore[arg-type]
    serving(server.url, namespace)
    run = Run(OP_INCREMENT, [f"bad/{n:03d}" for n in range(100)], [1] * 100)
    chunk, saved = encode_compressed(Chunk(NODE, 1, 1, 0, [run]), FrameWriter(1))
    assert saved
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        replica.wait_live(10)
        append_raw(server.url, namespace, [chunk], deltas=100)
        producer.set_many(CONTENT)
        replica.wait_for(producer.flush(10), 10)
        eventually(lambda: replica.stats().deltas_skipped == 100)
        assert dict(replica.items()) == CONTENT == inspector.folded()
        assert producer.stats().bytes_saved == replica.stats().chunks_compressed == 0
        assert replica.verify().is_equal
        write_snapshots(server.url, namespace)
        assert inspector.state() == CONTENT
    letter = msgpack.unpackb(raw.lrange(keys.dead, 0, -1)[0])  # type: ignore[index,arg-type]
    assert "lacks the word compress" in letter[2]
    assert letter[3] == NODE


def test_bombs_and_lies_are_refused_by_all_and_named(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """By the size that they declare, or by what they hold instead; everything else goes on."""
    runs = msgpack.packb([[[OP_SET, ["bad"], [1], None]]])
    good = zstandard.compress(runs)
    # Each behind a good one, which counts.
    bad = {
        "limit 4194304": MAGIC + b"\xe0" + (1 << 62).to_bytes(8, "little") + b"\3\0\x10x",
        "4194305 bytes": zstandard.compress(bytes((4 << 20) + 1)),
        "cannot be opened": good[:5] + bytes([len(runs) - 1]) + good[6:],
        "unused data": good + b"\0",
        "holds no runs": zstandard.compress(msgpack.packb([None])),
        "needs dictionary 7": MAGIC + b"\x21\7" + good[5:],
    }
    url, namespace = watched_shard.url, watched_shard.namespace
    chunks = []
    for frame in bad.values():
        chunks += [
            encode_chunk(Chunk(NODE, 1, 1, 0, [Run(OP_INCREMENT, ["good"], [1])])),
            with_frame(frame),
        ]
    with Replica(url, namespace=namespace) as replica:
        replica.wait_live(10)
        append_raw(url, namespace, chunks, deltas=1)
        watched_shard.producer.set("last", 1)
        replica.wait_for(watched_shard.producer.flush(10), 10)
        content = {"good": len(bad), "last": 1}
        assert dict(replica.items()) == content
        assert replica.stats().chunks_skipped == len(bad)
        assert replica.verify().is_equal
    watched_shard.publish()
    assert watched_shard.write() is not None
    assert watched_shard.agree() == content
    letters = [msgpack.unpackb(one) for one in raw.lrange(keys.dead, 0, -1)]  # type: ignore[union-attr]
    for letter, fault in zip(letters, bad, strict=True):
        assert fault in letter[2]
        assert letter[3] == NODE


def test_who_cannot_open_frames_is_refused_by_name(
    server: Server, namespace: str, serving: NewServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reader, writer and inspector alike; it says which package is missing."""
    serving(server.url, namespace)
    monkeypatch.setattr(features, "KNOWN_FEATURES", frozenset())
    told = "needs the feature word compress, and the package zstandard is not installed here"
    for face in (Producer, Replica, Inspector):
        with pytest.raises(NamespaceMismatchError, match=told):
            face(server.url, namespace=namespace).open()


def test_status_says_what_compression_saves() -> None:
    """Where the log has compressed chunks; else nothing."""
    assert _compressed(Joined("live")) == []
    (line,) = _compressed(Joined("live", bytes_compressed=12_345, bytes_uncompressed=37_035))
    assert str(line) == "compressed chunks in the log: 12,345 B for 37,035 B, 3.0 times fewer"
