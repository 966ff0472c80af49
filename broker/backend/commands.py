"""The Redis commands of statebroker: one Lua file, one command, one typed method.

Each method says what it does in Python's terms; the header of its Lua file says it in Redis' terms.
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

# Called as scripts that cannot write, which takes the right to read their keys and no more.
READERS: Final = frozenset({"state_sums", "state_ranges"})

MAX_REASON: Final = 300

PENDING: Final = 3  # of the keys of append: the node's list

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
        """Make the namespace if it is new; return (protocol version, shards) that it has."""
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
        """Take a node name in a shard, or (with `incarnation`) go on after a loss.

        Args:
            keys: the shard.
            node: the name.
            incarnation: None for a new one.
            token: random text without spaces, the same for the life of the producer.
            chunk: chunk number that counts as accepted.
            deltas: deltas up to that chunk.
            epoch: to be used if the shard has none yet.

        Raises:
            FencedError: another process took the name since.
        """
        number = "" if incarnation is None else incarnation
        reply = await self._run(
            "open", [keys.meta, keys.writers], node, number, token, chunk, deltas, epoch
        )
        if reply[0] == b"FENCED":
            raise fenced(node, int(reply[1]))
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
        """Append chunks, each exactly once; they follow each other, so each needs the one before.

        Args:
            keys: the shard.
            node: whose they are.
            incarnation: of the node.
            token: as for `open`.
            chunks: at least one; sent in one go.
            now: monotonic seconds, by which chunks have waited.
            max_age_ms: this node's own age threshold; None: the namespace's.
            max_count: likewise for the count.
            pending_limit: bytes that may be pending in the shard.

        Returns:
            For each chunk what became of it. Behind one that is not accepted none is.

        Raises:
            FencedError: another process took the name since.
            BackendError: Redis failed; which chunks it took is not known.
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
        """Append chunks in one go; those that are bulk are pushed before they are appended."""
        is_bulk = any(pushed is not None for pushed, _ in calls)
        pipe = self.client.pipeline(transaction=is_bulk)
        # In the transaction: a chunk that is pushed, and then not appended since nobody knows the
        # script, would lie before the next one for ever.
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
        """Wait until what one server holds of a node is on replicas, or on disks.

        Args:
            client: for commands that block; of the one server that answers for all the claims.
            claims: of the node, by shard.
            node: its name.
            token: as for `open`.
            replicas: how many have to have it.
            fsynced: whether the server's and the replicas' disks have to.
            timeout_ms: how long the server waits; 0 for ever.

        Returns:
            How many have it now, maybe fewer than asked for.

        Raises:
            FencedError: another process took the name since.
            UnsupportedServerError: the server cannot wait for disks.
        """
        async with translated("waiting for replicas and disks"):
            # In one go, on one connection: WAIT asks for what its own connection wrote. On a
            # connection made anew in between it would be content with nothing.
            pipe = client.pipeline(transaction=False)
            # Each time: a script that is missing would be noticed only after all the waiting.
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
                    raise RedisConnectionError("the server is no primary any more") from error
                raise cannot_wait(error) or error from error
        for reply in held:
            if reply[0] == b"FENCED":
                raise fenced(node, int(reply[1]))
        return Confirmed(
            is_held=all(
                reply[0] == b"HELD" and reply[1] >= claim.number
                for reply, claim in zip(held, claims, strict=True)
            ),
            local=bool(waited[0]) if fsynced else False,
            replicas=waited[1] if fsynced else waited,
        )

    async def leave(self, keys: ShardKeys, node: str, incarnation: int, token: str) -> bool:
        """Forget a node whose name nobody will take again; true if the record was its own."""
        return bool(await self._run("leave", [keys.writers], node, incarnation, token))

    async def drain(
        self,
        keys: ShardKeys,
        shard: int,
        batch_id: bytes,
        nodes: Sequence[str],
        limits: DrainLimits,
    ) -> Drained | NotDue | Undeclared | LogFull:
        """Publish what is due, as one batch."""
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
        """Tell the head if nothing was published for `interval_ms`, and how the worker is.

        Args:
            keys: the shard.
            shard: its number.
            interval_ms: of quiet.
            epoch: to be used if the shard has none yet.
            worker: name of the caller.
            max_age_ms: the namespace's age threshold from now on; None leaves it.
            max_count: likewise the count threshold.
            reason: why the worker is red; empty: it is green.

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
            told(reason),
        )
        return reply[0], reply[1]

    async def lease_take(self, keys: ShardKeys, holder: str, ttl_ms: int, reason: str = "") -> int:
        """Take or renew the lease, and tell why this scheduler is red ("": it is green).

        Returns:
            The fencing number, 0 if another one holds the lease.
        """
        reply = await self._run(
            "lease_take", [keys.lease, keys.meta, keys.workers], holder, ttl_ms, told(reason)
        )
        return int(reply[0])

    async def lease_release(self, keys: ShardKeys, holder: str, fence: int) -> None:
        """Give the lease back, if it is still held."""
        await self._run("lease_release", [keys.lease, keys.workers], holder, fence)

    async def sign_off(self, keys: ShardKeys, worker: str) -> None:
        """Forget a worker that stopped in order."""
        async with translated("signing off"):
            await self.client.hdel(keys.workers, worker)

    async def snapshot_begin(
        self, keys: ShardKeys, lease: Lease, position: Position
    ) -> bytes | None:
        """Begin to write the full state; return the hash's digest, None if nobody knows it.

        Args:
            keys: the shard.
            lease: ours; it lasts its whole time again from now on.
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
        """Write one page of the full state, and the hash's digest after it; renews the lease.

        Args:
            keys: the shard.
            lease: ours.
            digest: of the state hash.
            fields: to set.
            deletes: to delete.
            of_tables: they are of the tables hash, not of the state hash.

        Raises:
            FencedError: the lease was lost, or the server's history; nothing was written.
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
        """Move the snapshot's position; return the log bytes that stay.

        Raises:
            FencedError: the lease was lost, or the server's history; nothing was written.
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
        """Sum up one page of the full-state hash by key range, on the server."""
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


def told(reason: str) -> str:
    """Return a reason as the workers hash holds it: one line, not long."""
    return " ".join(reason.split())[:MAX_REASON]


def _appended(reply: Sequence[Any], node: str) -> Accepted | Missing | Busy:
    status = reply[0]
    if status in (b"OK", b"DUPLICATE"):
        return Accepted(reply[1], reply[2], reply[3], reply[4], status == b"DUPLICATE")
    if status == b"MISSING":
        return Missing(reply[1], reply[2])
    if status == b"BUSY":
        return Busy(reply[1])
    raise fenced(node, int(reply[1]))


def fenced(node: str, incarnation: int) -> FencedError:
    """Say that another process holds the node name."""
    return FencedError(
        f"another process took the node name {node!r} (incarnation {incarnation}); one process at "
        "a time can hold it: stop this one, or give each its own node="
    )


def cannot_wait(error: Exception) -> UnsupportedServerError | None:
    """Say why a server cannot wait for disks, and what to do; None: it is something else."""
    if "WAITAOF cannot be used when" in str(error):
        return UnsupportedServerError(
            "fsynced=True needs an append-only file, and the server has none: run CONFIG SET "
            "appendonly yes; Redis has accepted what was flushed"
        )
    if "unknown command" not in str(error):
        return None
    return UnsupportedServerError(
        "fsynced=True needs WAITAOF, which Redis has from 7.2 on and every Valkey: upgrade the "
        f"server, or have appendfsync always ({error}); Redis has accepted what was flushed"
    )


def _check_lease(reply: Sequence[Any], lease: Lease) -> None:
    if reply[0] == b"REWRITTEN":
        raise FencedError(
            f"the history that {lease.holder} folded is not the server's any more; it came back "
            "with less than it had, and the full state is folded again from what there is"
        )
    if reply[0] != b"OK":
        raise lease_lost(lease.holder)


def lease_lost(holder: str) -> FencedError:
    """Say that the scheduler's lease is gone."""
    return FencedError(f"{holder} does not hold the lease any more; another scheduler writes")
