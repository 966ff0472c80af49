"""The witness of a compose test, in a container: records Redis' data and its final state."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path
from time import monotonic

from broker.aio import Inspector
from broker.config import SETTINGS
from broker.protocol.names import shard_of
from broker.runtime.tasks import cancel_and_wait
from broker.testing.history import WITNESS
from broker.testing.journal import Journal
from broker.testing.records import Final, ShardPosition, digest_of
from tests.chaos.keyspace import SHARDS
from tests.chaos.witness import Witness

RETRY_S = 0.2


async def tell_finals(url: str, namespace: str, journal: Journal) -> None:
    """Record what the full-state hash holds, alone and with the log."""
    async with Inspector(url, namespace=namespace) as inspector:
        state = await inspector.state()
        for shard in range(SHARDS):
            content, at = await inspector.folded_shard(shard, None)
            place = ShardPosition(shard, at.epoch, at.offset, at.batch_id)
            part = {key: value for key, value in state.items() if shard_of(key, SHARDS) == shard}
            now = monotonic()
            journal.write(Final(now, WITNESS, place, digest_of(content)))
            journal.write(Final(now, "full-state hash", place, digest_of(part)))


async def watch(url: str, namespace: str, journal: Journal) -> None:
    """Watch until SIGTERM, then record the final state."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    limits = (SETTINGS["pending_bytes"].default, SETTINGS["log_bytes"].default)
    stopping = asyncio.create_task(stop.wait())
    while not stop.is_set():
        witness = asyncio.create_task(Witness(url, namespace, journal, limits).run())
        await asyncio.wait((witness, stopping), return_when=asyncio.FIRST_COMPLETED)
        if witness.done():
            print(f"witness: {witness.exception()!r}", flush=True)  # noqa: T201 - for the log
            await asyncio.sleep(RETRY_S)
        await cancel_and_wait([witness])
    await tell_finals(url, namespace, journal)


def main() -> None:
    """Read the command line and watch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--journal", type=Path, required=True)
    options = parser.parse_args()
    place = os.environ["STATEBROKER_URL"], os.environ["STATEBROKER_NAMESPACE"]
    with Journal(options.journal) as journal:
        asyncio.run(watch(*place, journal))


if __name__ == "__main__":
    main()
