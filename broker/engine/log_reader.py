"""The log of a shard, read page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from broker.backend import queries
from broker.backend.queries import LogPage
from broker.backend.topology import Client
from broker.core.replay import LogReplay, Progress
from broker.engine.dictionaries import learn_for
from broker.errors import BackendError
from broker.protocol.frames import FrameReader
from broker.protocol.messages import Position
from broker.protocol.names import ShardKeys


class LogMovedError(BackendError):
    """The log does not lead from one position to another (any more)."""


async def log_pages(
    client: Client,
    keys: ShardKeys,
    replay: LogReplay,
    goal: Callable[[], Position | None],
    *,
    batches: int,
    frames: FrameReader | None,
) -> AsyncGenerator[LogPage, None]:
    """Yield pages of the log until a replay reaches its goal; the last page may be empty.

    Args:
        client: to read with.
        keys: the shard.
        replay: where to begin; the caller replays each page's entries before the next page.
        goal: returns where to stop, called before each page; None: at the end of the log. Nothing
            is awaited between its last call and the end.
        batches: of a page, at most; see `broker.backend.page_sizes`.
        frames: learns the dictionaries that each page needs, before it is yielded; None: the
            namespace has no compressed chunks.

    Raises:
        LogMovedError: the goal cannot be reached.
        BackendError: Redis failed.
    """
    while (progress := replay.progress(wanted := goal())) is Progress.READ:
        page = await queries.log_page(client, keys, replay.position.offset, batches)
        await learn_for(client, keys, frames, page.entries)
        yield page
        if not page.entries:
            progress = replay.progress(wanted, is_at_end=True)
            break
    if progress is Progress.MOVED:
        at = replay.position.offset
        raise LogMovedError(
            f"{keys.log} has nothing after offset {at} that leads to offset "
            f"{wanted.offset if wanted else at}: it was cut, rewritten or deleted"
        )
