"""The Lua commands of statebroker: one file, one command, one typed method.

Each method is documented in terms of Python; the header of its Lua file in terms of Redis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import Any, Final, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from broker.backend.connections import translated
from broker.backend.replies import (
    Accepted,
    Busy,
    Claim,
    Confirmed,
    Drained,
    DrainLimits,
    Lease,
    LogFull,
    Missing,
    NotDue,
    Opened,
    StateSums,
    Undeclared,
)
from broker.backend.routing import load_script
from broker.backend.topology import Client
from broker.core.lane import Packed
from broker.errors import FencedError, UnsupportedServerError
from broker.protocol.constants import BULK_BYTES
from broker.protocol.messages import Position
from broker.protocol.names import ShardKeys, config_key

NAMES: Final = (
    "join",
    "open",
    "append",
    "confirm",
    "leave",
    "drain",
    "heartbeat",
    "lease_take",
    "lease_release",
    "snapshot_begin",
    "snapshot_page",
    "snapshot_commit",
    "state_sums",
    "state_ranges",
)

# Called with EVALSHA_RO, which needs only the right to read their keys.
READERS: Final = frozenset({"state_sums", "state_ranges"})

MAX_REASON_CHARS: Final = 300

PENDING: Final = 3  # index of the node's list among the keys of append

Argument: TypeAlias = "str | bytes | float"


def source(name: str) -> str:
    """Return the text of one command's Lua file."""
    return files("broker.backend").joinpath("lua", f"{name}.lua").read_text("utf-8")


class Commands:
    """The commands on one connection; every method is one atomic step on the server.

    Args:
        client: made by `broker.backend.connections`.
        publish: "PUBLISH", or "SPUBLISH" on a Cluster.
    """

    def __init__(self, client: Client, publish: str = "PUBLISH") -> None:
        self.client = client
        self.publish = publish
        self._sources = {name: source(name) for name in NAMES}
        self._hashes = {
            name: hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - how Redis names scripts
            for name, text in self._sources.items()
        }

    async def _run(self, name: str, keys: Sequence[str], *args: str | bytes | float) -> Any:
        async with translated(name):
            sha = self._hashes[name]
            call = self.client.evalsha_ro if name in READERS else self.client.evalsha
            try:
                return await call(sha, len(keys), *keys, *args)
            except NoScriptError:
                # First use on this server, or SCRIPT FLUSH, or a restart.
                await load_script(self.client, keys[0], self._sources[name])
                return await call(sha, len(keys), *keys, *args)

    async def join(self, namespace: str, protocol: int, shards: int) -> tuple[int, int]:
        """Create the namespace if it is new; return its (protocol version, shards)."""
        found = await self._run("join", [config_key(namespace)], protocol, shards)
        return int(found[0]), int(found[1])

    async def open(
        self,
        keys: ShardKeys,
        node: str,
        incarnation: int | None,
        token: str,
        *,
        chunk: int,
        deltas: int,
        epoch: bytes,
    ) -> Opened:
        """Acquire a node name in a shard, or with `incarnation` continue after a loss.

        Args:
            keys: the shard.
            node: the name.
            incarnation: None for a new one.
            token: random text without spaces, the same for the lifetime of the producer.
            chunk: number of the last chunk that counts as accepted.
            deltas: deltas up to that chunk.
            epoch: used if the shard has none yet.

        Raises:
            FencedError: another process has acquired the name since.
        """
        number = "" if incarnation is None else incarnation
        reply = await self._run(
            "open", [keys.meta, keys.writers], node, number, token, chunk, deltas, epoch
        )
        if reply[0] == b"FENCED":
            raise fenced_error(node, int(reply[1]))
        return Opened(*reply[1:])

    async def append(
        self,
        keys: ShardKeys,
        node: str,
        incarnation: int,
        token: str,
        chunks: Sequence[Packed],
        *,
        now: float,
        max_age_ms: int | None,
        max_count: int | None,
        pending_limit: int,
    ) -> list[Accepted | Missing | Busy]:
        """Append consecutive chunks, each exactly once; each requires the one before.

        Args:
            keys: the shard.
            node: name of the writer.
            incarnation: of the node.
            token: as for `open`.
            chunks: at least one; sent in one round trip.
            now: monotonic seconds, to compute how long each chunk has waited.
            max_age_ms: age threshold of this node; None: that of the namespace.
            max_count: count threshold, likewise.
            pending_limit: maximum pending bytes in the shard.

        Returns:
            The result for each chunk; after the first that is not accepted, none is.

        Raises:
            FencedError: another process has acquired the name since.
            BackendError: Redis failed; any of the chunks may have been accepted.
        """
        names = [keys.meta, keys.writers, keys.order, keys.pending(node), keys.ready]
        calls = []
        for chunk in chunks:
            is_bulk = len(chunk.data) >= BULK_BYTES
            arguments = (
                *(node, incarnation, token, chunk.number, chunk.deltas),
                max(0, round((now - chunk.since) * 1000)),
                "" if max_age_ms is None else max_age_ms,
                "" if max_count is None else max_count,
                pending_limit,
                *((b"", len(chunk.data)) if is_bulk else (chunk.data, "")),
            )
            calls.append((chunk.data if is_bulk else None, arguments))
        if len(calls) == 1 and calls[0][0] is None:
            replies = [await self._run("append", names, *calls[0][1])]
        else:
            async with translated("append"):
                replies = await self._append_all(names, calls)
        return [_appended(reply, node) for reply in replies]

    async def _append_all(
        self, names: Sequence[str], calls: Sequence[tuple[bytes | None, Sequence[Argument]]]
    ) -> list[Any]:
        """Append chunks in one round trip; bulk chunks are pushed before they are appended."""
        is_bulk = any(pushed is not None for pushed, _ in calls)
        pipe = self.client.pipeline(transaction=is_bulk)
        # In the transaction: a chunk that was pushed but not appended, because the script is
        # missing, would stay in front of the next one for ever.
        pipe.script_load(self._sources["append"])
        appends = []
        for pushed, arguments in calls:
            if pushed is not None:
                pipe.rpush(names[PENDING], pushed)
            appends.append(len(pipe))
            pipe.evalsha(self._hashes["append"], len(names), *names, *arguments)
        replies = await pipe.execute()
        return [replies[at] for at in appends]

    async def confirm(
        self,
        client: Client,
        claims: Sequence[Claim],
        node: str,
        token: str,
        *,
        replicas: int,
        fsynced: bool,
        timeout_ms: int,
    ) -> Confirmed:
        """Wait until the chunks of a node on one server have reached replicas or disks.

        Args:
            client: for blocking commands; of the one server that owns the keys of all claims.
            claims: of the node, by shard.
            node: its name.
            token: as for `open`.
            replicas: how many replicas must have the chunks.
            fsynced: whether they must be on the disks of the server and the replicas.
            timeout_ms: how long the server waits; 0 for ever.

        Returns:
            How many have them now; may be fewer than asked for.

        Raises:
            FencedError: another process has acquired the name since.
            UnsupportedServerError: the server does not support WAITAOF.
        """
        async with translated("waiting for replicas and disks"):
            # On one connection: WAIT covers what its own connection wrote. On a new connection,
            # which wrote nothing, it would return at once.
            pipe = client.pipeline(transaction=False)
            # Always: a missing script would be noticed only after the wait.
            pipe.script_load(self._sources["confirm"])
            for claim in claims:
                pipe.evalsha(
                    *(self._hashes["confirm"], 1, claim.keys.writers),
                    *(node, str(claim.incarnation), token),
                )
            if fsynced:
                pipe.execute_command("WAITAOF", 1, replicas, timeout_ms)
            else:
                pipe.execute_command("WAIT", replicas, timeout_ms)
            try:
                _, *held, waited = await pipe.execute()
            except ResponseError as error:
                if "UNBLOCKED" in str(error):
                    raise RedisConnectionError("the server is no longer a primary") from error
                raise wait_unsupported_error(error) or error from error
        for reply in held:
            if reply[0] == b"FENCED":
                raise fenced_error(node, int(reply[1]))
        return Confirmed(
            is_held=all(
                reply[0] == b"HELD" and reply[1] >= claim.number
                for reply, claim in zip(held, claims, strict=True)
            ),
            local=bool(waited[0]) if fsynced else False,
            replicas=waited[1] if fsynced else waited,
        )

    async def leave(self, keys: ShardKeys, node: str, incarnation: int, token: str) -> bool:
        """Remove the record of a node that will not be used again; true if it was its own."""
        return bool(await self._run("leave", [keys.writers], node, incarnation, token))

    async def drain(
        self,
        keys: ShardKeys,
        shard: int,
        batch_id: bytes,
        nodes: Sequence[str],
        limits: DrainLimits,
    ) -> Drained | NotDue | Undeclared | LogFull:
        """Publish the due chunks as one batch."""
        reply = await self._run(
            "drain",
            [keys.meta, keys.order, keys.log, *map(keys.pending, nodes)],
            keys.channel,
            keys.bulk,
            self.publish,
            shard,
            batch_id,
            limits.batch_bytes,
            limits.batch_chunks,
            limits.log_bytes,
            *nodes,
        )
        status = reply[0]
        if status == b"BATCH":
            return Drained(*reply[1:])
        if status == b"NODES":
            return Undeclared([node.decode() for node in reply[1:]])
        return LogFull(reply[1]) if status == b"LOGFULL" else NotDue(reply[1])

    async def heartbeat(
        self,
        keys: ShardKeys,
        shard: int,
        interval_ms: int,
        epoch: bytes,
        worker: str,
        *,
        max_age_ms: int | None,
        max_count: int | None,
        reason: str = "",
    ) -> tuple[int, int]:
        """Publish the head if the shard was quiet for `interval_ms`; record the worker's health.

        Args:
            keys: the shard.
            shard: its number.
            interval_ms: how long nothing must have been published.
            epoch: used if the shard has none yet.
            worker: name of the caller.
            max_age_ms: new age threshold of the namespace; None leaves it unchanged.
            max_count: new count threshold, likewise.
            reason: why the worker is red; empty if it is green.

        Returns:
            (ms until the next heartbeat is due, ms until something pending is due or -1).
        """
        reply = await self._run(
            "heartbeat",
            [keys.meta, keys.workers],
            keys.channel,
            self.publish,
            shard,
            interval_ms,
            epoch,
            worker,
            "flush",
            "" if max_age_ms is None else max_age_ms,
            "" if max_count is None else max_count,
            one_line(reason),
        )
        return reply[0], reply[1]

    async def lease_take(self, keys: ShardKeys, holder: str, ttl_ms: int, reason: str = "") -> int:
        """Acquire or renew the lease; record why this scheduler is red ("" if it is green).

        Returns:
            The fencing number; 0 if another scheduler holds the lease.
        """
        reply = await self._run(
            "lease_take", [keys.lease, keys.meta, keys.workers], holder, ttl_ms, one_line(reason)
        )
        return int(reply[0])

    async def lease_release(self, keys: ShardKeys, holder: str, fence: int) -> None:
        """Release the lease if it is still held."""
        await self._run("lease_release", [keys.lease, keys.workers], holder, fence)

    async def remove_worker(self, keys: ShardKeys, worker: str) -> None:
        """Remove the record of a worker that shut down."""
        async with translated("removing the worker"):
            await self.client.hdel(keys.workers, worker)

    async def snapshot_begin(
        self, keys: ShardKeys, lease: Lease, position: Position
    ) -> bytes | None:
        """Begin to write the full state; return the digest of the hash, None if it is unknown.

        Args:
            keys: the shard.
            lease: ours; it is renewed for its full duration.
            position: up to which the net changes were folded.

        Raises:
            FencedError: the lease was lost, or the position is not in the shard's history.
        """
        reply = await self._run(
            "snapshot_begin",
            [keys.meta, keys.lease, keys.log],
            lease.holder,
            lease.fence,
            lease.ttl_ms,
            position.epoch,
            position.offset,
            position.batch_id,
            lease.mark,
        )
        _check_lease(reply, lease)
        return reply[1]  # type: ignore[no-any-return]

    async def snapshot_page(
        self,
        keys: ShardKeys,
        lease: Lease,
        digest: bytes,
        fields: Sequence[tuple[str, bytes]],
        deletes: Sequence[str],
        *,
        of_tables: bool = False,
    ) -> None:
        """Write one page of the full state and the resulting digest of the hash; renew the lease.

        Args:
            keys: the shard.
            lease: ours.
            digest: of the state hash.
            fields: to set.
            deletes: to delete.
            of_tables: the fields belong to the tables hash, not to the state hash.

        Raises:
            FencedError: the lease was lost, or the server's history changed; nothing was written.
        """
        flat = [part for pair in fields for part in pair]
        reply = await self._run(
            "snapshot_page",
            [keys.tables if of_tables else keys.state, keys.lease, keys.meta],
            lease.holder,
            lease.fence,
            lease.ttl_ms,
            lease.mark,
            digest,
            len(fields),
            *flat,
            *deletes,
        )
        _check_lease(reply, lease)

    async def snapshot_commit(
        self,
        keys: ShardKeys,
        shard: int,
        lease: Lease,
        position: Position,
        previous_id: bytes,
        *,
        cut: int,
        dead_limit: int,
        dead: Sequence[bytes],
    ) -> int:
        """Move the snapshot's position; return the remaining log bytes.

        Raises:
            FencedError: the lease was lost, or the server's history changed; nothing was written.
        """
        reply = await self._run(
            "snapshot_commit",
            [keys.meta, keys.lease, keys.log, keys.dead],
            lease.holder,
            lease.fence,
            keys.channel,
            self.publish,
            shard,
            lease.mark,
            position.epoch,
            position.offset,
            position.batch_id,
            previous_id,
            cut,
            dead_limit,
            *dead,
        )
        _check_lease(reply, lease)
        return int(reply[1])

    async def state_sums(self, keys: ShardKeys, cursor: str, count: int) -> StateSums:
        """Compute the sums of one page of the full-state hash by key range, on the server."""
        reply = await self._run("state_sums", [keys.state], cursor, count)
        numbers = list(map(int, reply[2:]))
        return StateSums(
            reply[0].decode(),
            reply[1],
            {
                at: (high << 32) + low
                for at, high, low in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
            },
        )

    async def state_ranges(
        self, keys: ShardKeys, cursor: str, count: int, ranges: Collection[int]
    ) -> tuple[str, list[bytes], list[bytes]]:
        """Read the fields of certain key ranges in one page: (next cursor, keys, fields)."""
        text = " ".join(f"{at:02x}" for at in sorted(ranges))
        reply = await self._run("state_ranges", [keys.state], cursor, count, text)
        return reply[0].decode(), reply[1::2], reply[2::2]


def one_line(reason: str) -> str:
    """Return a reason as the workers hash holds it: one line of limited length."""
    return " ".join(reason.split())[:MAX_REASON_CHARS]


def _appended(reply: Sequence[Any], node: str) -> Accepted | Missing | Busy:
    status = reply[0]
    if status in (b"OK", b"DUPLICATE"):
        return Accepted(reply[1], reply[2], reply[3], reply[4], status == b"DUPLICATE")
    if status == b"MISSING":
        return Missing(reply[1], reply[2])
    if status == b"BUSY":
        return Busy(reply[1])
    raise fenced_error(node, int(reply[1]))


def fenced_error(node: str, incarnation: int) -> FencedError:
    """Return the error for a node name that another process acquired."""
    return FencedError(
        f"another process took the node name {node!r} (incarnation {incarnation}); only one "
        "process can hold it: stop this one, or give each process its own node="
    )


def wait_unsupported_error(error: Exception) -> UnsupportedServerError | None:
    """Return the error if a server cannot wait for disks; None if `error` is another one."""
    if "WAITAOF cannot be used when" in str(error):
        return UnsupportedServerError(
            "fsynced=True needs an append-only file, which this server does not have: run CONFIG "
            "SET appendonly yes; Redis has accepted the flushed deltas"
        )
    if "unknown command" not in str(error):
        return None
    return UnsupportedServerError(
        "fsynced=True needs WAITAOF, which Redis 7.2 and every Valkey have: upgrade the server, or "
        f"set appendfsync always ({error}); Redis has accepted the flushed deltas"
    )


def _check_lease(reply: Sequence[Any], lease: Lease) -> None:
    if reply[0] == b"REWRITTEN":
        raise FencedError(
            f"the server came back with less history than {lease.holder} had folded; the full "
            "state is folded again from the history that is left"
        )
    if reply[0] != b"OK":
        raise lease_lost_error(lease.holder)


def lease_lost_error(holder: str) -> FencedError:
    """Return the error for a scheduler that lost its lease."""
    return FencedError(f"{holder} no longer holds the lease; another scheduler writes")
