"""A replica process that records what it applies, its content, status and lag."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from broker import BrokerError
from broker.aio import Replica
from broker.core import content as content_module
from broker.core.fold import Observer, Tally, fold
from broker.errors import NotLoadedError
from broker.protocol.messages import Batch, Chunk
from broker.protocol.names import shard_of
from broker.testing.journal import Journal
from broker.testing.records import (
    Applied,
    Content,
    Final,
    Seen,
    ShardPosition,
    Tallied,
    Torn,
    digest_of,
    digest_of_chunks,
)
from tests.chaos.keyspace import SHARDS, group_keys

BOUND_S = 3.0
SAMPLE_S = 0.02
CONTENT_EVERY_S = 0.5
UNCHANGED_EVERY_S = 0.1


class Reader:
    """Samples one replica on the same event loop, so that each sample is between two batches."""

    def __init__(self, name: str, replica: Replica, journal: Journal) -> None:
        self.name = name
        self.replica = replica
        self.journal = journal

    def applied(
        self,
        values: dict[str, Any],
        batch: Batch,
        chunks: Iterable[Chunk],
        floors: dict[str, int] | None = None,
        observe: Observer | None = None,
        **more: Any,
    ) -> Tally:
        """Fold a batch like the product, and record it."""
        tally = fold(values, batch, chunks, floors, observe, **more)
        self.journal.write(
            Applied(
                at=monotonic(),
                replica=self.name,
                place=ShardPosition(batch.shard, batch.epoch, batch.offset, batch.id),
                previous=batch.previous_id,
                loading=values is not self.replica._engine.shards[batch.shard].values,
                loads=self.replica.stats().loads,
                digest=digest_of_chunks(batch.chunks),
                deltas=batch.deltas,
                applied=tally.applied,
                superseded=tally.superseded,
                refused=tally.refused,
                skipped=tally.skipped,
            )
        )
        return tally

    def places(self) -> tuple[ShardPosition, ...]:
        """Return the position of each shard that holds data."""
        return tuple(
            ShardPosition(shard, position.epoch, position.offset, position.batch_id)
            for shard, position in enumerate(self.replica.positions)
            if position.epoch
        )

    async def sample(self, stop: asyncio.Event) -> None:
        """Record status, lag and positions whenever they change, and the content now and then."""
        last: tuple[str, tuple[ShardPosition, ...]] | None = None
        seen_at = content_at = 0.0
        while not stop.is_set():
            # In this order: if the process is suspended in between, the lag is older than the
            # status.
            now, lag, status = monotonic(), self.replica.lag, str(self.replica.status)
            places = self.places()
            if (status, places) != last or now - seen_at > UNCHANGED_EVERY_S:
                last, seen_at = (status, places), now
                self.journal.write(Seen(now, self.name, status, lag, places))
            if now - content_at > CONTENT_EVERY_S:
                content_at = now
                self.tally()
                # Before the first load there is nothing to compare.
                with suppress(NotLoadedError):
                    for place, digest in self.contents():
                        self.journal.write(Content(now, self.name, status, place, digest))
            with suppress(TimeoutError):
                async with asyncio.timeout(SAMPLE_S):
                    await stop.wait()

    def contents(self) -> list[tuple[ShardPosition, bytes]]:
        """Return a digest of each shard's content."""
        content, _ = self.replica.snapshot()
        parts: list[dict[str, Any]] = [{} for _ in range(SHARDS)]
        for key, value in content.items():
            parts[shard_of(key, SHARDS)][key] = value
        return [(place, digest_of(parts[place.shard])) for place in self.places()]

    async def check_groups(self) -> None:
        """Check a group whenever one of its keys changes."""
        async for change in self.replica.changes("group/"):
            group = int(change.key.split("/")[1])
            values = {str(self.replica.get(key)) for key in group_keys(group)}
            if len(values) > 1:
                self.journal.write(
                    Torn(monotonic(), self.name, f"group {group}", tuple(sorted(values)))
                )

    def tally(self) -> None:
        """Record the counters."""
        counters = {name: n for name, n in self.replica.stats().as_dict().items() if type(n) is int}
        self.journal.write(Tallied(monotonic(), self.name, counters))

    async def run(self, stop: asyncio.Event) -> None:
        """Sample until stopped, then record the final content."""
        watching = asyncio.create_task(self.check_groups())
        await self.sample(stop)
        watching.cancel()
        now = monotonic()
        for place, digest in self.contents():
            self.journal.write(Final(now, f"replica {self.name}", place, digest))
        self.tally()


async def follow(options: argparse.Namespace) -> None:
    """Follow until SIGTERM, and restart after errors."""
    stop = asyncio.Event()
    names = count()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with Journal(options.journal) as journal:
        while not stop.is_set():
            try:
                async with Replica(
                    options.url, namespace=options.namespace, staleness_bound=BOUND_S
                ) as replica:
                    # A new name, since its counters start at 0.
                    reader = Reader(f"{options.name}.{next(names)}", replica, journal)
                    vars(content_module)["fold"] = reader.applied
                    await reader.run(stop)
            except BrokerError as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                await asyncio.sleep(SAMPLE_S)


def main() -> None:
    """Follow until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    asyncio.run(follow(parser.parse_args()))


if __name__ == "__main__":
    main()
