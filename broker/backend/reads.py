"""Several reads of one shard that show one moment, without a transaction.

Redis refuses MULTI while it is out of memory, plain reads never. It executes the commands of a
pipeline one after the other, mostly without others in between; the marks of the shard, read before
and after, tell whether there was one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from broker.backend.server_errors import is_refused
from broker.backend.stored import INTAKE_HEAD
from broker.backend.topology import Client
from broker.errors import BackendError
from broker.protocol.names import ShardKeys

TRIES: Final = 5
# Fields of the meta hash: every command that changes the shard's history or full state changes one
# of them.
MARKS: Final = ("epoch", "offset", "id", "snap_offset", "snap_id", "fold_to")


async def at_one_moment(
    client: Client,
    keys: ShardKeys,
    queue: Callable[[Pipeline], object],
    *,
    keeps_errors: bool = False,
    with_intake: bool = False,
) -> list[Any]:
    """Return the replies of the reads that `queue` adds to a pipeline.

    Args:
        client: to read with.
        keys: the shard.
        queue: adds the reads.
        keeps_errors: a read that the server refuses is an exception among the replies.
        with_intake: nothing must have been accepted between them, either.

    Raises:
        BackendError: the shard changed between them several times in a row.
        RedisError, OSError: a read failed.
    """
    for _ in range(TRIES):
        pipe = client.pipeline(transaction=False)
        pipe.hmget(keys.meta, MARKS)
        if with_intake:
            pipe.hget(keys.intake, INTAKE_HEAD)
        queue(pipe)
        if with_intake:
            pipe.hget(keys.intake, INTAKE_HEAD)
        pipe.hmget(keys.meta, MARKS)
        executed = pipe.execute(raise_on_error=False) if keeps_errors else pipe.execute()
        before, *replies, after = await executed
        if any(isinstance(one, RedisError) and is_refused(one) for one in (before, after)):
            # Raised, not kept, it makes the client look for the server to ask.
            await client.hmget(keys.meta, MARKS)
            continue
        heads = (replies.pop(0), replies.pop()) if with_intake else (None, None)
        if isinstance(after, Exception) or isinstance(heads[1], Exception):
            return replies
        if before == after and heads[0] == heads[1]:
            return replies
    error = BackendError(f"{keys.meta} changed between reads, {TRIES} times in a row; try again")
    error.is_temporary = True
    raise error
