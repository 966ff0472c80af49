"""The Lua commands: heads, bytes that they write, and numbers of every size, on a real server."""

from __future__ import annotations

import asyncio
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
from redis.exceptions import NoPermissionError, ResponseError

import broker
from broker.backend.commands import NAMES, Commands, source
from broker.backend.connections import Connections
from broker.backend.replies import Claim, DrainLimits, Lease
from broker.backend.stored import node_record, queue_entry
from broker.core.sent_chunks import Packed
from broker.protocol.codec import decode_packet, encode_packet
from broker.protocol.constants import NO_ID, TRIGGER_AGE, TRIGGER_COUNT
from broker.protocol.digest import DIGEST_BYTES
from broker.protocol.messages import Batch, Heartbeat, Notice, Position
from broker.protocol.names import ShardKeys, config_key
from broker.testing.server import Server
from tests.integration.lua_shard import (
    EPOCH,
    HOUR,
    NOT_PERMITTED,
    Shard,
    chunk,
    packed_call,
    packed_entry,
    token_bytes,
)

# -- the heads of the files -----------------------------------------------------------------------


def split(name: str) -> tuple[str, str]:
    """Head and body of a Lua file, the body without comments."""
    head, _, body = source(name).partition("]]")
    return head, re.sub(r"--[^\n]*", "", body)


def reported(name: str, kind: str) -> tuple[int, bool]:
    """How many KEYS or ARGV the head numbers, and whether any number more may follow."""
    section = re.search(
        rf"^{kind} (.*?)^(?:KEYS|ARGV|returns)", split(name)[0], re.DOTALL | re.MULTILINE
    )
    assert section is not None, f"{name}.lua tells no {kind}"
    count, at = 0, 0
    while found := re.compile(rf"(?<!\S){count + 1}(\.\.)? +\S").search(section[1], at):
        if found[1]:
            return count, True
        count, at = count + 1, found.end() - 1
    return count, False


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["KEYS", "ARGV"])
def test_each_key_and_argument_used_is_reported_in_the_head(name: str, kind: str) -> None:
    """The head numbers every KEYS and ARGV that the body uses, and no other."""
    count, is_open = reported(name, kind)
    body = split(name)[1]
    assert {int(n) for n in re.findall(rf"{kind}\[(\d+)\]", body)} == set(range(1, count + 1))
    firsts = dict[str, str]()
    for names, values in re.findall(r"^local ([A-Z_, ]+) = ([\d, ]+)$", body, re.MULTILINE):
        firsts |= zip(names.split(", "), values.split(", "), strict=True)
    uses_rest = re.search(rf"{kind}\[[A-Za-z]|unpack\({kind}", body) is not None
    assert uses_rest == is_open
    if is_open:
        assert str(count + 1) in [at for name, at in firsts.items() if name.startswith("FIRST")]


@pytest.mark.parametrize("name", NAMES)
def test_each_status_returned_is_reported_in_the_head(name: str) -> None:
    """The head lists every status that the body returns, and no other."""
    head, body = split(name)
    returns = head.partition("\nreturns ")[2]
    listed = {word for word in re.findall(r"'([A-Z]+)'", returns) if word != "PUBLISH"}
    assert set(re.findall(r"return \{'([A-Z]+)'", body)) == listed
    assert ("\npublishes " in head) == ("redis.call(publish" in body)


class Recorder:
    """A client that notes what each script was called with, and passes it on."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[tuple[list[Any], list[Any]]] = []

    async def evalsha(self, sha: str, count: int, *rest: Any) -> Any:
        """Note and pass on."""
        self.calls.append((list(rest[:count]), list(rest[count:])))
        return await self.client.evalsha(sha, count, *rest)

    async def evalsha_ro(self, sha: str, count: int, *rest: Any) -> Any:
        """Likewise, where the script may only read."""
        self.calls.append((list(rest[:count]), list(rest[count:])))
        return await self.client.evalsha_ro(sha, count, *rest)

    def pipeline(self, *, transaction: bool) -> Any:
        """Likewise, for what is sent in one go."""
        pipe = self.client.pipeline(transaction=transaction)
        real = pipe.evalsha

        def evalsha(sha: str, count: int, *rest: Any) -> Any:
            self.calls.append((list(rest[:count]), list(rest[count:])))
            return real(sha, count, *rest)

        pipe.evalsha = evalsha
        return pipe

    async def script_load(self, script: str) -> Any:
        """The call before it did not count; it is repeated."""
        self.calls.pop()
        return await self.client.script_load(script)


def test_the_typed_methods_pass_what_the_heads_number(server: Server, namespace: str) -> None:
    """Each method of Commands passes each key and argument at the place that its Lua file names."""
    k = ShardKeys.of(namespace, 0, 1)
    epoch, first, second = b"epoch--2", b"batch--1", b"batch--2"
    expected: dict[str, tuple[list[Any], list[Any]]] = {
        "join": ([config_key(namespace)], [3, 1, "leases ttl"]),
        "open": ([k.intake, k.stage("n1")], ["n1", 7, TOKEN, 0, 0, epoch]),
        "append": (
            [k.intake, k.queue, k.ready],
            [packed_call("n1", 7, "tok", 1, 3, 60, 50, "", 1000), b"chunk", 32768],
        ),
        "confirm": ([k.intake], ["n1", "7", TOKEN]),
        "leave": ([k.intake], ["n1", 7, TOKEN]),
        "drain": (
            [k.meta, k.intake, k.queue, k.log],
            [k.channel, k.bulk, "PUBLISH", 0, first, 101, 102, 103],
        ),
        "heartbeat": (
            [k.meta, k.intake, k.queue, k.workers],
            [k.channel, "PUBLISH", 0, 1000, epoch, "w1", "flush", "", 10, "a b"],
        ),
        "lease_take": ([k.lease, k.meta, k.workers], ["s1", 9000, "x" * 300]),
        "snapshot_begin": (
            [k.meta, k.lease, k.log],
            ["s1", 1, 9000, epoch, 1, first, b"mark"],
        ),
        "snapshot_page": (
            [k.state, k.lease, k.meta],
            ["s1", 1, 9000, b"mark", "digest", b"digest", b"\xa1k\xa5field", b"\xa4gone"],
        ),
        "snapshot_commit": (
            [k.meta, k.lease, k.log, k.dead],
            [
                *("s1", 1, k.channel, "PUBLISH", 0, Lease("", 0, 0, b"mark").after_page().mark),
                *(epoch, 1, first, second, 0, 9, b"d1", b"d2"),
            ],
        ),
        "state_ranges": ([k.state], ["0", 10, "00 ff"]),
        "dict_add": ([k.dicts, k.intake, k.lease], ["s1", 1, 32768, b"content", 8]),
        "lease_release": ([k.lease, k.workers], ["s1", 1]),
    }

    async def call_all() -> list[tuple[list[Any], list[Any]]]:
        connections = Connections(server.url)
        recorder = Recorder(connections.commands())
        commands = Commands(cast("Any", recorder))
        await commands.join(namespace, 3, 1, ["ttl", "leases"])
        await commands.open(k, "n1", 7, TOKEN, chunk=0, deltas=0, epoch=epoch)
        await connections.commands().hset(k.intake, ":dicts", struct.pack(">I", 32768))  # type: ignore[misc]
        await commands.append(
            *(k, "n1", 7, TOKEN, [Packed(1, 3, 3, 1.0, 0, b"chunk", 0, 32768)]),
            now=1.06,
            max_age_ms=50,
            max_count=None,
            pending_limit=1000,
        )
        await commands.confirm(
            *(cast("Any", recorder), [Claim(k, 7, 1)], "n1", TOKEN),
            replicas=0,
            fsynced=False,
            timeout_ms=1,
        )
        await commands.leave(k, "n1", 7, TOKEN)
        await commands.drain(k, 0, first, DrainLimits(101, 102, 103))
        await commands.heartbeat(
            k, 0, 1000, epoch, "w1", max_age_ms=None, max_count=10, reason=" a\n b"
        )
        await commands.lease_take(k, "s1", 9000, "x" * 500)
        lease, position = Lease("s1", 1, 9000, b"mark"), Position(epoch, 1, first)
        await commands.snapshot_begin(k, lease, position)
        await commands.snapshot_page(k, lease, b"digest", [("k", b"field")], ["gone"])
        await commands.snapshot_commit(
            *(k, 0, lease.after_page(), position, second),
            cut=0,
            dead_limit=9,
            dead=[b"d1", b"d2"],
        )
        await commands.state_ranges(k, "0", 10, {255, 0})
        await commands.dict_add(k, lease, 32768, b"content", 8)
        await commands.lease_release(k, "s1", 1)
        await connections.close()
        return recorder.calls

    assert set(expected) == set(NAMES)
    assert asyncio.run(call_all()) == list(expected.values())
    for name, (keys, args) in expected.items():
        for kind, passed in (("KEYS", keys), ("ARGV", args)):
            count, is_open = reported(name, kind)
            # What may follow need not.
            assert len(passed) >= count if is_open else len(passed) == count, (name, kind)


def test_the_guard_stops_a_script_that_touches_another_key(shard: Shard) -> None:
    """What the other tests rely on: an undeclared key or channel is an error."""
    with pytest.raises(ResponseError, match=NOT_PERMITTED):
        shard.run("return redis.call('GET', ARGV[1])", [shard.keys.lease], shard.keys.meta)
    with pytest.raises(ResponseError, match=NOT_PERMITTED):
        shard.run("return redis.call('PUBLISH', 'other', '')", [shard.keys.lease])
    with pytest.raises(NoPermissionError):
        shard._guarded.get(shard.keys.meta)


# -- what is stored and published -----------------------------------------------------------------


TOKEN = token_bytes("tok")

DOC = Path(broker.__file__).with_name("PROTOCOL.md").read_text("utf-8")


def test_each_field_is_written_by_the_commands_that_the_document_names(shard: Shard) -> None:
    """PROTOCOL.md names the writers and the form of each field of config, log and meta."""
    shard.join(features="leases ttl")
    shard.opened()
    shard.append(1, deltas=10, max_count=10)
    shard.append(2, waited=HOUR)
    assert shard.drain()[2] == TRIGGER_COUNT
    assert shard.drain()[2] == TRIGGER_AGE
    shard.put(published_at=1)
    shard.heartbeat(max_age=70, max_count=80)
    shard.take()
    shard.begin_and_commit(2, (2).to_bytes(8), (1).to_bytes(8), b"dead", cut=1)
    shard.begin(2, (2).to_bytes(8))
    shard.page({b"k": b"field"}, digest=bytes(DIGEST_BYTES))
    shard.begin(2, (2).to_bytes(8))
    shard.page({b"k": b"field"}, digest=bytes(DIGEST_BYTES), which="tables_digest")
    shard.admin.hdel(shard.keys.meta, "epoch")
    shard.heartbeat()
    shard.append(3)
    shard.put(published_at=shard.now() + HOUR)
    shard.heartbeat()
    shard.admin.delete(shard.keys.intake)
    shard.heartbeat()

    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in DOC.splitlines()]
    table = rows[rows.index(["hash", "field", "form", "written by", "meaning"]) + 2 :]
    fields = {row[1]: row for row in table[: table.index([])] if row[0] != "log"}
    assert {name: ", ".join(sorted(who)) for name, who in shard.changed.items()} == {
        name: row[3]
        for name, row in fields.items()
        if row[3] != "scheduler"  # by a plain command
    } | {"epoch": "drain, heartbeat"}
    for name, value in shard.hashes().items():
        form = fields[name][2]
        size = re.fullmatch(r"(\d+) bytes", form)
        chars = rb"\d+" if form == "number" else rb"[a-z ]+"
        assert len(value) == int(size[1]) if size else re.fullmatch(chars, value), name


def test_a_batch_is_published_and_logged_as_the_codec_would_write_it(shard: Shard) -> None:
    """Header and chunks of a batch are byte for byte encode_packet's, on channel and in the log."""
    subscription = shard.subscription
    shard.opened("n1", "n2")
    chunks = [chunk("n1", 1), chunk("n2", 1, 300), chunk("n1", 2, 70_000)]
    before = shard.now()
    shard.append(1, chunks[0], "n1", deltas=3, waited=HOUR)
    shard.append(1, chunks[1], "n2", deltas=1 << 31, max_count=(1 << 32) - 1)
    covered = shard.append(2, chunks[2], "n1", deltas=4)[1]
    size = shard.drain(batch_id=b"batch--1", shard=4095)[5]
    after = shard.now()

    data = subscription.next()
    assert subscription.bulk == chunks[2:]
    assert len(data) + len(chunks[2]) == size
    batch = decode_packet(data, subscription.bulk)
    assert isinstance(batch, Batch)
    assert encode_packet(batch) == data
    assert batch == Batch(
        shard=4095,
        epoch=EPOCH,
        offset=1,
        id=b"batch--1",
        previous_id=NO_ID,
        time_ms=batch.time_ms,
        covered=covered,
        trigger=TRIGGER_AGE,
        oldest_ms=batch.oldest_ms,
        deltas=7 + (1 << 31),
        chunks=chunks,
    )
    assert before <= batch.oldest_ms <= batch.time_ms <= after
    entries = shard.admin.xrange(shard.keys.log)
    fields = {b"b": data, b"t": b"%d" % size, b"n": b"n1 n2 n1", b"c1": chunks[2]}
    assert entries == [(b"1-0", fields)]

    shard.append(3, b"", "n1", waited=HOUR)
    shard.drain(batch_id=b"batch--2")
    second = decode_packet(subscription.next())
    assert (second.offset, second.id, second.previous_id) == (2, b"batch--2", b"batch--1")
    assert shard.number("logged") == int(shard.admin.xrange(shard.keys.log)[1][1][b"t"])


def test_heartbeat_and_notice_are_published_as_the_codec_would_write_them(shard: Shard) -> None:
    """A heartbeat has the head, a notice the snapshot, byte for byte as encode_packet."""
    subscription = shard.subscription
    shard.heartbeat(shard=4095)
    data = subscription.next()
    first = decode_packet(data)
    assert isinstance(first, Heartbeat)
    assert encode_packet(first) == data
    assert first == Heartbeat(4095, EPOCH, 0, NO_ID, NO_ID, shard.number("published_at"), 0)

    shard.batches(3)
    for _ in range(3):
        subscription.next()
    covered = shard.number("appends")
    shard.put(published_at=0)
    shard.heartbeat()
    beat = decode_packet(subscription.next())
    ids = [n.to_bytes(8) for n in range(4)]
    assert beat == Heartbeat(0, EPOCH, 3, ids[3], ids[2], shard.number("published_at"), covered)

    shard.take()
    shard.begin_and_commit(2, ids[2], ids[1])
    data = subscription.next()
    notice = decode_packet(data)
    assert encode_packet(notice) == data
    assert notice == Notice(0, EPOCH, 2, ids[2], ids[1], shard.number("snap_at"), covered)


def test_the_entry_behind_a_chunk(shard: Shard) -> None:
    """Form, flags, due, append number and deltas are big-endian in 22 bytes, then the node."""
    shard.opened("EWR")
    for number, (max_age, waited) in enumerate(
        [(48, 0), (48, 1), (48, 47), (48, 48), (48, 49), (0, 0)], 1
    ):
        before = shard.now()
        reply = shard.append(number, b"data", "EWR", deltas=5, max_age=max_age, waited=waited)
        element = shard.admin.lrange(shard.keys.queue, -1, -1)[0]
        form, flags, due, append, deltas = struct.unpack(">BBQQI", element[:22])
        assert (form, flags, append, deltas, element[22:]) == (1, 0, reply[1], 5, b"EWR")
        assert due - append // 1000 == max(0, max_age - waited)
        assert before <= append // 1000 <= shard.now()


def dumped(name: str) -> bytes:
    """A dump of the document."""
    dump = DOC.split(f"```hex {name}\n")[1].split("```")[0]
    lines = re.findall(r"^((?:[0-9a-f]+ ?)+?)(?: {2,}|$)", dump, re.MULTILINE)
    return bytes.fromhex("".join(lines))


def test_what_append_takes_stores_and_answers_in_the_document(shard: Shard) -> None:
    """The document's call gives its record, its entry and its reply, but for the clock."""
    now = 1700000000150123
    wanted = node_record("", "EWR", dumped("record"))
    shard.admin.hset(
        shard.keys.intake,
        "EWR",
        replace(
            wanted,
            number=6,
            deltas=wanted.deltas - 5,
            append=0,
            count=0,
            own_bytes=wanted.own_bytes - len(b"data"),
        ).packed(),
    )
    shard.put(epoch=dumped("accepted")[8:16], appends=wanted.edge)
    shard.admin.hdel(shard.keys.meta, "epoch")
    k = shard.keys
    reply = shard.call("append", [k.intake, k.queue, k.ready], dumped("call"), b"data")
    number = int.from_bytes(reply[:8])
    assert number > now
    assert reply[8:] == dumped("accepted")[8:]
    record = node_record("", "EWR", shard.admin.hget(k.intake, "EWR"))
    assert record == replace(wanted, append=number)
    assert dumped("record")[32:40] == dumped("accepted")[:8] == now.to_bytes(8)
    (entry,) = shard.entries()
    shown = queue_entry(dumped("entry"))
    assert shown is not None
    assert packed_entry(shown) == dumped("entry")
    assert (shown.due_ms - shown.accepted_ms, shown.append) == (50, now)
    assert entry == replace(shown, append=number, due_ms=number // 1000 + 50)


def test_the_head_in_the_document(shard: Shard) -> None:
    """Each number of the head is at the place that the document's table names."""
    rows = re.findall(r"^\| (\d+) \| (\w+),", DOC.split("`:head`, 56 bytes")[1], re.MULTILINE)
    places = {name: int(at) for at, name in rows[:7]}
    shard.opened()
    shard.append(1, b"x" * 7, deltas=3, max_count=3)
    head = shard.admin.hget(shard.keys.intake, ":head")
    assert head[places["epoch"] : 8] == EPOCH
    found = {at: int.from_bytes(head[at : at + 8]) for at in range(8, 56, 8)}
    names = {"due": "due_ms"}
    assert {name: found[at] for name, at in places.items() if at} == {
        name: getattr(shard.head(), names.get(name, name)) for name in places if name != "epoch"
    }
    assert found[places["pending_bytes"]] == 7
    assert found[places["accepted"]] == 3
    assert found[places["count_due"]] == found[places["appends"]]


# -- large numbers --------------------------------------------------------------------------------

HIGH = ("offset", "covered", "appends", "accepted", "published", "logged", "bytes", "by_count")


@pytest.mark.parametrize("base", [(1 << 31) - 2, 1 << 32, 10**14 - 2, 10**15, (1 << 53) - 4096])
def test_no_digit_is_lost_in_large_numbers(shard: Shard, base: int) -> None:
    """Counters, offsets and times are exact up to 2**53, in Redis, in replies and in packets."""
    subscription = shard.subscription
    shard.put(epoch=EPOCH, id=b"batch--0", **dict.fromkeys(HIGH, base), by_age=base, missing=base)
    shard.put(log_bytes=base)
    shard.put_record("n1", 5, 0, base)
    number = shard.append(1, b"x" * 10, deltas=7, max_count=7)[1]
    assert number == shard.number("appends") >= base + 1
    assert number == base + 1 or number // 1000 <= shard.now()
    assert shard.record() == (5, "tok", 1, base + 7)
    assert shard.append(3) == [b"MISSING", 2, base + 7]
    assert (shard.number("accepted"), shard.number("count_due")) == (base + 7, number)
    assert shard.drain(log_limit=1 << 60)[:4] == [b"BATCH", base + 1, TRIGGER_COUNT, 7]
    batch = decode_packet(subscription.next())
    assert (batch.offset, batch.covered) == (base + 1, number)
    size = len(encode_packet(batch))
    grown = {"published": 7, "logged": size, "bytes": size, "by_count": 1, "log_bytes": size}
    assert {name: shard.number(name) - base for name in grown} == grown
    entry = f"{base + 1}-0".encode()
    assert shard.admin.xrange(shard.keys.log)[0][0] == entry
    number = shard.append(2, waited=HOUR)[1]
    assert shard.number("appends") == number > batch.covered
    assert shard.drain(log_limit=1 << 60)[1] == base + 2
    assert shard.number("by_age") == base + 1
    subscription.next()
    shard.put(published_at=0)
    shard.heartbeat()
    beat = decode_packet(subscription.next())
    assert (beat.offset, beat.covered) == (base + 2, number)
    shard.take()
    second = (2).to_bytes(8)
    assert shard.begin_and_commit(base + 2, second, cut=base + 1)[0] == b"OK"
    assert shard.number("snap_offset") == base + 2
    assert decode_packet(subscription.next()).offset == base + 2
    assert shard.admin.xinfo_stream(shard.keys.log)["first-entry"][0] == f"{base + 2}-0".encode()


def test_incarnations_chunk_numbers_and_fences_are_exact_below_ten_to_the_fourteen(
    shard: Shard,
) -> None:
    """The three numbers that stand in texts keep their digits up to the limit of the document."""
    most = 10**14 - 1
    assert shard.open(incarnation=most, chunk=most - 1)[:3] == [b"OPEN", most, EPOCH]
    assert shard.append(most, incarnation=most)[0] == b"OK"
    assert shard.record() == (most, "tok", most, 1)
    assert shard.append(1, incarnation=1) == [b"FENCED", most]
    shard.heartbeat()
    shard.put(fence=most - 1)
    assert shard.take() == [most, b"s1"]
    assert shard.take() == [most, b"s1"]
    assert shard.begin(0, NO_ID, fence=most) == [b"OK", None, None]
    assert shard.page({b"k": b"field"}, fence=most) == [b"OK"]


def test_a_chunk_of_the_largest_size_passes_untouched(shard: Shard) -> None:
    """Four mebibytes of every byte value come out as they went in."""
    subscription = shard.subscription
    data = bytes(range(256)) * (1 << 14)
    shard.opened()
    shard.append(1, data, waited=HOUR)
    assert shard.drain(max_bytes=1)[0] == b"BATCH"
    assert msgpack.unpackb(subscription.next())[14] == [[data[:96], len(data)]]
    assert subscription.bulk == [data]
