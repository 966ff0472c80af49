"""The commands of producers: take a node name, append chunks, wait for replicas and disks."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from broker.backend.commands.scripts import Scripts
from broker.backend.connections import translated
from broker.backend.replies import (
    Accepted,
    Busy,
    Claim,
    Confirmed,
    Missing,
    NoDictionary,
    Opened,
)
from broker.backend.topology import Client
from broker.core.sent_chunks import Packed
from broker.errors import FencedError, UnsupportedServerError
from broker.protocol.constants import BULK_BYTES
from broker.protocol.names import ShardKeys

FENCED_BY_OTHERS: Final = 2  # elements of that reply; with one more it was forgotten

Argument: TypeAlias = "str | bytes | float"

# Incarnation, token, number, deltas, ms waited, max age, max count, limit, bytes on the stage.
_CALL: Final = Struct(">Q8sQIIIIQI")
# Append number, epoch, whether the state is full, max age, max count.
_ACCEPTED: Final = Struct(">Q8sQII")
_MOST_U32: Final = (1 << 32) - 1


class ProducerCommands(Scripts):
    """What the sender of a producer calls."""

    async def open(
        self,
        keys: ShardKeys,
        node: str,
        incarnation: int | None,
        token: bytes,
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
            token: 8 random bytes, the same for the lifetime of the producer.
            chunk: number of the last chunk that counts as accepted.
            deltas: deltas up to that chunk.
            epoch: of the shard as meta has it; any 8 bytes if it has none.

        Raises:
            FencedError: another process has acquired the name since.
        """
        number = "" if incarnation is None else incarnation
        reply = await self.run(
            "open",
            [keys.intake, keys.stage(node)],
            *(node, number, token, chunk, deltas, epoch),
        )
        if reply[0] == b"FENCED":
            raise fenced_error(node, int(reply[1]), is_forgotten=len(reply) > FENCED_BY_OTHERS)
        return Opened(*reply[1:])

    async def append(
        self,
        keys: ShardKeys,
        node: str,
        incarnation: int,
        token: bytes,
        chunks: Sequence[Packed],
        *,
        now: float,
        max_age_ms: int | None,
        max_count: int | None,
        pending_limit: int,
    ) -> list[Accepted | Missing | Busy | NoDictionary]:
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
        names, stage = [keys.intake, keys.queue, keys.ready], keys.stage(node)
        calls = []
        for chunk in chunks:
            is_bulk = len(chunk.data) >= BULK_BYTES
            call = _CALL.pack(
                *(incarnation, token, chunk.number, chunk.deltas),
                min(_MOST_U32, max(0, round((now - chunk.since) * 1000))),
                _MOST_U32 if max_age_ms is None else max_age_ms,
                max_count or 0,
                pending_limit,
                len(chunk.data) if is_bulk else 0,
            )
            arguments: tuple[Argument, ...] = (call + node.encode(), b"" if is_bulk else chunk.data)
            if chunk.dictionary:
                arguments += (chunk.dictionary,)
            calls.append((chunk.data if is_bulk else None, arguments))
        if len(calls) == 1 and calls[0][0] is None:
            replies = [await self.run("append", names, *calls[0][1])]
        else:
            async with translated("append"):
                replies = await self._append_all(names, stage, calls)
        return [_appended(reply, node) for reply in replies]

    async def _append_all(
        self,
        names: Sequence[str],
        stage: str,
        calls: Sequence[tuple[bytes | None, Sequence[Argument]]],
    ) -> list[Any]:
        """Append chunks in one round trip; bulk chunks are pushed to the stage before."""
        is_bulk = any(pushed is not None for pushed, _ in calls)
        pipe = self.client.pipeline(transaction=is_bulk)
        # In the transaction: a chunk that was pushed but not appended, because the script is
        # missing, would stay on the stage for ever.
        pipe.script_load(self.sources["append"])
        appends = []
        for pushed, arguments in calls:
            used = [*names]
            if pushed is not None:
                pipe.delete(stage)
                pipe.rpush(stage, pushed)
                used.append(stage)
            appends.append(len(pipe))
            pipe.evalsha(self.hashes["append"], len(used), *used, *arguments)
        replies = await pipe.execute()
        return [replies[at] for at in appends]

    async def confirm(
        self,
        client: Client,
        claims: Sequence[Claim],
        node: str,
        token: bytes,
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
            pipe.script_load(self.sources["confirm"])
            for claim in claims:
                pipe.evalsha(
                    *(self.hashes["confirm"], 1, claim.keys.intake),
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

    async def leave(self, keys: ShardKeys, node: str, incarnation: int, token: bytes) -> bool:
        """Remove the record of a node that will not be used again; true if it was its own."""
        return bool(await self.run("leave", [keys.intake], node, incarnation, token))


def _appended(reply: Any, node: str) -> Accepted | Missing | Busy | NoDictionary:
    if isinstance(reply, bytes):
        return _accepted(reply, is_duplicate=False)
    status = reply[0]
    if status == b"DUPLICATE":
        return _accepted(reply[1], is_duplicate=True)
    if status == b"MISSING":
        return Missing(reply[1], reply[2])
    if status == b"BUSY":
        return Busy(*reply[1:])
    if status == b"DICT":
        return NoDictionary()
    raise fenced_error(node, int(reply[1]))


def _accepted(reply: bytes, *, is_duplicate: bool) -> Accepted:
    append, epoch, full, max_age_ms, max_count = _ACCEPTED.unpack(reply)
    return Accepted(append, epoch, max_age_ms, max_count, bool(full), is_duplicate)


def fenced_error(node: str, incarnation: int, *, is_forgotten: bool = False) -> FencedError:
    """Return the error for a node name that another process acquired, or that was forgotten."""
    if is_forgotten:
        return FencedError(
            f"node {node!r} was forgotten, because its process had not been heard of for long "
            "(`statebroker repair --forget-idle`), and it cannot be told any more what it sent: "
            "make a new producer, and write again what this one had not flushed"
        )
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
