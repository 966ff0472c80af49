"""One shard of a new namespace, whose Lua commands a test calls one by one.

Every call runs as a user who may touch the keys declared in it, and publish to the shard's channel.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from dataclasses import replace
from typing import Any, cast

import hiredis
import msgpack
import redis

from broker.backend.commands import source
from broker.backend.stored import (
    INTAKE_HEAD,
    IntakeHead,
    NodeRecord,
    QueueEntry,
    intake_head,
    node_record,
    queue_entry,
)
from broker.protocol.codec import decode_packet, encode_chunk
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Batch, Chunk, Run
from broker.protocol.names import ShardKeys, config_key
from broker.protocol.operations import OP_SET
from broker.testing.server import Server

EPOCH = b"epoch--1"
MARK = b"mark---1"
TOKEN = "tok"
HOUR = 3_600_000
PLENTY = 1 << 30
PLENTIFUL_CHUNKS = 4096

# Of the head of the intake hash; epoch and covered are in meta too.
HEAD_NUMBERS = ("appends", "accepted", "pending_bytes", "due_ms", "count_due")
HEAD_FIELDS = ("epoch", "covered", *HEAD_NUMBERS)

# As Valkey and Redis say it when a script goes beyond what its caller may.
NOT_PERMITTED = "(?i)permission|can't (access|publish)"


class Subscription:
    """A subscriber that reads the raw bytes without a client library."""

    def __init__(self, server: Server, keys: ShardKeys) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(server.socket))
        self._reader = hiredis.Reader()
        self._bulk_channel = keys.bulk.encode()
        self.bulk: list[bytes] = []
        self._send("SUBSCRIBE", keys.channel, keys.bulk)
        assert [self._read()[0] for _ in range(2)] == [b"subscribe"] * 2

    def _send(self, *command: str) -> None:
        self._socket.sendall(
            b"*%d\r\n" % len(command)
            + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in command)
        )

    def _read(self) -> Any:
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(1 << 16))
        return reply

    def next(self) -> bytes:
        """The next packet, waited for; bulk chunks that came before it are in `bulk`."""
        self.bulk.clear()
        while True:
            kind, channel, data = self._read()
            assert kind == b"message"
            if channel != self._bulk_channel:
                return cast("bytes", data)
            self.bulk.append(data)

    def batch(self) -> Batch:
        """The next packet, which is a batch, whole."""
        packet = decode_packet(self.next(), self.bulk)
        assert isinstance(packet, Batch)
        return packet

    def none_came(self) -> bool:
        """Whether nothing was published: the next message is the reply to a PING."""
        self._send("PING")
        return bool(self._read()[0] == b"pong")

    def close(self) -> None:
        """End it."""
        self._socket.close()


class Shard:
    """One shard of a new namespace, its commands with suitable defaults."""

    def __init__(self, server: Server, namespace: str) -> None:
        self.keys = ShardKeys.of(namespace, 0, 1)
        self.config = config_key(namespace)
        self.admin: Any = redis.Redis(unix_socket_path=str(server.socket), protocol=2)
        self._user = f"user-{namespace}"
        self._permit([])
        self._guarded: Any = redis.Redis(
            unix_socket_path=str(server.socket), protocol=2, username=self._user, password="any"
        )
        self._subscription: Subscription | None = None
        self._server = server
        self.batch_ids = 0
        self.changed: dict[str, set[str]] = defaultdict(set)

    def close(self) -> None:
        """Remove everything but the namespace's keys from the shared server."""
        self.admin.execute_command("ACL", "DELUSER", self._user)
        if self._subscription is not None:
            self._subscription.close()
        self._guarded.close()
        self.admin.close()

    def _permit(self, keys: list[str]) -> None:
        self.admin.execute_command(
            *("ACL", "SETUSER", self._user, "reset", "on", "nopass", "+@all"),
            *(f"&{self.keys.channel}", f"&{self.keys.bulk}", *(f"~{key}" for key in keys)),
        )

    @property
    def subscription(self) -> Subscription:
        """A subscription to the shard's channel, from its first use on."""
        if self._subscription is None:
            self._subscription = Subscription(self._server, self.keys)
        return self._subscription

    def run(self, lua: str, keys: list[str], *args: Any) -> Any:
        """Run a script as a user who may touch only `keys`."""
        self._permit(keys)
        return self._guarded.evalsha(self.admin.script_load(lua), len(keys), *keys, *args)

    def call(self, name: str, keys: list[str], *args: Any) -> Any:
        """Run a command, and note which fields of meta and config it changed."""
        before = self.hashes()
        reply = self.run(source(name), keys, *args)
        after = self.hashes()
        for field in before.keys() | after.keys():
            if before.get(field) != after.get(field):
                self.changed[field].add(name)
        return reply

    def hashes(self) -> dict[str, bytes]:
        """All fields of meta and config."""
        found = self.admin.hgetall(self.keys.meta) | self.admin.hgetall(self.config)
        return {name.decode(): value for name, value in found.items()}

    def head(self) -> IntakeHead:
        """The head of the intake hash; zeros if there is none."""
        found = intake_head(self.admin.hget(self.keys.intake, INTAKE_HEAD))
        return found or IntakeHead(EPOCH, 0, 0, 0, 0, 0, 0)

    def number(self, field: str) -> int:
        """A number of the meta hash or of the head, 0 if absent."""
        if field in HEAD_NUMBERS:
            return int(getattr(self.head(), field))
        return int(self.admin.hget(self.keys.meta, field) or 0)

    def put(self, **fields: Any) -> None:
        """Set fields of the meta hash and the head, for a state that would take long to reach."""
        of_meta = {name: value for name, value in fields.items() if name not in HEAD_NUMBERS}
        of_head = {name: value for name, value in fields.items() if name in HEAD_FIELDS}
        if of_meta:
            self.admin.hset(self.keys.meta, mapping=of_meta)
        if of_head:
            head = replace(self.head(), **of_head).packed()
            self.admin.hset(self.keys.intake, INTAKE_HEAD, head)

    def record(self, node: str = "n1") -> tuple[int, str, int, int]:
        """Incarnation, token, last chunk number and deltas of a node."""
        found = node_record(self.keys.intake, node, self.admin.hget(self.keys.intake, node))
        return found.incarnation, found.token.decode().rstrip("."), found.number, found.deltas

    def put_record(
        self,
        node: str,
        incarnation: int,
        number: int,
        deltas: int,
        token: str = TOKEN,
        **pending: int,
    ) -> None:
        """Set the record of a node; without `pending`, nothing of it is."""
        record = NodeRecord(incarnation, token_bytes(token), number, deltas, **pending)
        self.admin.hset(self.keys.intake, node, record.packed())

    def now(self) -> int:
        """The server's clock in ms."""
        seconds, micros = self.admin.time()
        return int(seconds * 1000 + micros // 1000)

    def lists(self) -> dict[str, Any]:
        """Everything that a command without effect must not change."""
        names = sorted(self.admin.keys(self.keys.prefix.replace("[", "\\[") + "*"))
        return {name.decode(): self.admin.dump(name) for name in names}

    def chunks(self) -> list[bytes]:
        """The chunks in the queue."""
        return cast("list[bytes]", self.admin.lrange(self.keys.queue, 0, -1)[::2])

    def entries(self) -> list[QueueEntry]:
        """Their entries."""
        found = map(queue_entry, self.admin.lrange(self.keys.queue, 0, -1)[1::2])
        return [entry for entry in found if entry is not None]

    def rewrite(self, at: int, **changes: Any) -> None:
        """Change an entry of the queue."""
        entry = replace(self.entries()[at], **changes)
        self.admin.lset(self.keys.queue, 2 * at + 1, packed_entry(entry))

    # -- the commands -----------------------------------------------------------------------------

    def join(self, protocol: int = 3, shards: int = 1, features: str = "") -> Any:
        """Create the namespace, or read its settings."""
        return self.call("join", [self.config], protocol, shards, features)

    def open(
        self,
        node: str = "n1",
        incarnation: Any = "",
        token: str = TOKEN,
        chunk: int = 0,
        deltas: int = 0,
    ) -> Any:
        """Claim a node name."""
        keys = [self.keys.intake, self.keys.stage(node)]
        place = (node, incarnation, token_bytes(token))
        return self.call("open", keys, *place, chunk, deltas, EPOCH)

    def append(
        self,
        number: int,
        data: bytes = b"chunk",
        node: str = "n1",
        incarnation: int = 5,
        token: str = TOKEN,
        *,
        deltas: int = 1,
        waited: int = 0,
        max_age: Any = HOUR,
        max_count: Any = 1000,
        limit: int = PLENTY,
        dictionary: int = 0,
        full: bool = False,
    ) -> Any:
        """Append a chunk that is due in an hour, unless told otherwise; `full`: return the flag."""
        k = self.keys
        reply = self.call(
            "append",
            [k.intake, k.queue, k.ready],
            packed_call(
                node, incarnation, token, number, deltas, waited, max_age, max_count, limit
            ),
            data,
            *([dictionary] if dictionary else []),
        )
        return full_flag(reply) if full else as_list(reply)

    def append_pushed(
        self,
        number: int,
        data: bytes,
        node: str = "n1",
        incarnation: int = 5,
        token: str = TOKEN,
        *,
        deltas: int = 1,
        waited: int = 0,
        limit: int = PLENTY,
    ) -> Any:
        """Push a chunk to the stage, then append it, in one transaction."""
        k = self.keys
        names = [k.intake, k.queue, k.ready, k.stage(node)]
        self._permit(names)
        pipe = self._guarded.pipeline(transaction=True)
        pipe.delete(k.stage(node))
        pipe.rpush(k.stage(node), data)
        pipe.evalsha(
            *(self.admin.script_load(source("append")), len(names), *names),
            packed_call(
                *(node, incarnation, token, number, deltas, waited, HOUR, 1000, limit, len(data))
            ),
            b"",
        )
        return as_list(pipe.execute()[-1])

    def drain(
        self,
        *,
        batch_id: bytes | None = None,
        max_bytes: int = PLENTY,
        max_chunks: int = PLENTIFUL_CHUNKS,
        log_limit: int = PLENTY,
        shard: int = 0,
    ) -> Any:
        """Drain what is due."""
        k = self.keys
        self.batch_ids += 1
        return self.call(
            "drain",
            [k.meta, k.intake, k.queue, k.log],
            *(k.channel, k.bulk, "PUBLISH", shard, batch_id or self.batch_ids.to_bytes(8)),
            *(max_bytes, max_chunks, log_limit),
        )

    def heartbeat(
        self,
        interval: int = 1000,
        worker: str = "w1",
        *,
        epoch: bytes = EPOCH,
        max_age: Any = "",
        max_count: Any = "",
        shard: int = 0,
        red: str = "",
    ) -> Any:
        """Publish a heartbeat if it is due."""
        k = self.keys
        return self.call(
            "heartbeat",
            [k.meta, k.intake, k.queue, k.workers],
            *(k.channel, "PUBLISH", shard, interval, epoch, worker, "flush", max_age, max_count),
            red,
        )

    def take(self, holder: str = "s1", ttl: int = HOUR, red: str = "") -> Any:
        """Take or renew the lease."""
        k = self.keys
        return self.call("lease_take", [k.lease, k.meta, k.workers], holder, ttl, red)

    def begin(
        self,
        offset: int,
        batch_id: bytes,
        *,
        fence: int = 1,
        epoch: bytes = EPOCH,
        ttl: int = HOUR,
        mark: bytes = MARK,
    ) -> Any:
        """Begin a full state as s1."""
        k = self.keys
        return self.call(
            "snapshot_begin",
            [k.meta, k.lease, k.log],
            *("s1", fence, ttl, epoch, offset, batch_id, mark),
        )

    def page(
        self,
        sets: dict[bytes, bytes],
        deletes: tuple[bytes, ...] = (),
        *,
        fence: int = 1,
        ttl: int = HOUR,
        mark: bytes = MARK,
        digest: bytes = b"digest",
        which: str = "digest",
    ) -> Any:
        """Write a page as s1."""
        flat = [part for pair in sets.items() for part in pair]
        streams = [
            b"".join(msgpack.packb(one, use_bin_type=False) for one in parts)
            for parts in (flat, deletes)
        ]
        k = self.keys
        return self.call(
            "snapshot_page",
            [k.state, k.lease, k.meta],
            *("s1", fence, ttl, mark, which, digest, *streams),
        )

    def commit(
        self,
        offset: int,
        batch_id: bytes,
        previous: bytes = NO_ID,
        *dead: bytes,
        fence: int = 1,
        epoch: bytes = EPOCH,
        cut: int = 0,
        most_dead: int = 10,
        mark: bytes = MARK,
    ) -> Any:
        """Commit a snapshot as s1."""
        k = self.keys
        return self.call(
            "snapshot_commit",
            [k.meta, k.lease, k.log, k.dead],
            *("s1", fence, k.channel, "PUBLISH", 0, mark, epoch, offset, batch_id, previous),
            *(cut, most_dead, *dead),
        )

    def begin_and_commit(self, offset: int, batch_id: bytes, *rest: bytes, **options: Any) -> Any:
        """Write a full state that changes nothing, up to this position."""
        assert self.begin(offset, batch_id)[0] == b"OK"
        return self.commit(offset, batch_id, *rest, **options)

    def opened(self, *nodes: str) -> None:
        """Let nodes open their names as incarnation 5."""
        for node in nodes or ("n1",):
            assert self.open(node)[0] == b"OPEN"
            self.put_record(node, 5, 0, 0)

    def batches(self, count: int) -> None:
        """Publish so many batches of one chunk each."""
        self.opened()
        for number in range(1, count + 1):
            assert self.append(number, waited=HOUR)[0] == b"OK"
            assert self.drain()[:2] == [b"BATCH", number]


def token_bytes(token: str) -> bytes:
    """A token of eight bytes."""
    return token.encode().ljust(8, b".")


def packed_call(  # noqa: PLR0917 - as the fields of a call
    node: str,
    incarnation: int,
    token: str,
    number: int,
    deltas: int,
    waited: int,
    max_age: Any,
    max_count: Any,
    limit: int,
    pushed: int = 0,
) -> bytes:
    """The first argument of append."""
    age = (1 << 32) - 1 if max_age == "" else max_age
    numbers = (number, deltas, waited, age, max_count or 0, limit, pushed)
    return struct.pack(">Q8sQIIIIQI", incarnation, token_bytes(token), *numbers) + node.encode()


def as_list(reply: Any) -> Any:
    """The reply of append as the words that it stands for."""
    if isinstance(reply, bytes):
        append, epoch, full, max_age, max_count = struct.unpack(">Q8sQII", reply)
        assert full in {0, 1}
        return [b"OK", append, epoch, max_age, max_count]
    if reply[0] == b"DUPLICATE":
        return [reply[0], *as_list(reply[1])[1:]]
    return reply


def full_flag(reply: Any) -> int:
    """Whether a reply of append, accepted or a duplicate, says that the state is full."""
    accepted = reply if isinstance(reply, bytes) else reply[1]
    return int(struct.unpack(">Q8sQII", accepted)[2])


def packed_entry(entry: QueueEntry) -> bytes:
    """An entry of the queue."""
    numbers = struct.pack(">BBQQI", 1, 0, entry.due_ms, entry.append, entry.deltas)
    return numbers + entry.node.encode()


def chunk(node: str, number: int, size: int = 0) -> bytes:
    """A real chunk, at least `size` bytes long."""
    return encode_chunk(
        Chunk(node, 5, number, 0, [Run(OP_SET, [f"{node}-{number}"], ["x" * size])])
    )
