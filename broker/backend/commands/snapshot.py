"""The commands of schedulers: hold the lease of a shard, and write its full state under it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgpack

from broker.backend.commands.flush import one_line
from broker.backend.commands.scripts import Scripts
from broker.backend.replies import Lease
from broker.errors import FencedError
from broker.protocol.messages import Position
from broker.protocol.names import ShardKeys


class SnapshotCommands(Scripts):
    """What a scheduler calls."""

    async def lease_take(self, keys: ShardKeys, holder: str, ttl_ms: int, reason: str = "") -> int:
        """Acquire or renew the lease; record why this scheduler is red ("" if it is green).

        Returns:
            The fencing number; 0 if another scheduler holds the lease.
        """
        reply = await self.run(
            "lease_take", [keys.lease, keys.meta, keys.workers], holder, ttl_ms, one_line(reason)
        )
        return int(reply[0])

    async def lease_release(self, keys: ShardKeys, holder: str, fence: int) -> None:
        """Release the lease if it is still held."""
        await self.run("lease_release", [keys.lease, keys.workers], holder, fence)

    async def dict_add(
        self, keys: ShardKeys, lease: Lease, number: int, content: bytes, most: int
    ) -> bool:
        """Store a dictionary, and drop the oldest beyond `most`; false if the lease was lost."""
        names = [keys.dicts, keys.intake, keys.lease]
        return bool(
            await self.run("dict_add", names, lease.holder, lease.fence, number, content, most)
        )

    async def snapshot_begin(
        self, keys: ShardKeys, lease: Lease, position: Position
    ) -> tuple[bytes | None, bytes | None]:
        """Begin to write the full state; return the digests of state and tables, None if unknown.

        Args:
            keys: the shard.
            lease: ours; it is renewed for its full duration.
            position: up to which the net changes were folded.

        Raises:
            FencedError: the lease was lost, or the position is not in the shard's history.
        """
        reply = await self.run(
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
        return reply[1], reply[2]

    async def snapshot_page(
        self,
        keys: ShardKeys,
        lease: Lease,
        digest: bytes,
        fields: Sequence[tuple[str | bytes, bytes]],
        deletes: Sequence[str | bytes],
        *,
        of_tables: bool = False,
    ) -> None:
        """Write one page of the full state and the resulting digest of its hash; renew the lease.

        Args:
            keys: the shard.
            lease: ours, with the mark of the step before; the next step needs `Lease.after_page`.
            digest: of the hash that the page belongs to.
            fields: to set.
            deletes: to delete.
            of_tables: the fields belong to the tables hash, not to the state hash.

        Raises:
            FencedError: the lease was lost, or the server's history changed; nothing was written.
        """
        reply = await self.run(
            "snapshot_page",
            [keys.tables if of_tables else keys.state, keys.lease, keys.meta],
            lease.holder,
            lease.fence,
            lease.ttl_ms,
            lease.mark,
            "tables_digest" if of_tables else "digest",
            digest,
            _stream(chain.from_iterable(fields)),
            _stream(deletes),
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
        reply = await self.run(
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


def _stream(parts: Iterable[str | bytes]) -> bytes:
    """Return names and fields as MessagePack str, one behind the other; Redis reads no bin."""
    return b"".join(map(msgpack.Packer(use_bin_type=False).pack, parts))


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
