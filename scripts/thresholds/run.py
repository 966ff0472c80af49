"""Shows when deltas are published: by count and by age.

A worker publishes a batch when 10 deltas are pending, or when the oldest is
500 ms old. Scenario 1: a burst of 12 writes; 10 are published at once by count,
the other 2 by age. Scenario 2: after a pause of 600 ms one more write, published
by age. The batches are observed on the live channel of a server that is started
for it, and checked.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from time import time
from typing import Any

from rich.console import Console
from rich.table import Table

from broker import BrokerError
from broker.aio import Producer
from broker.backend.connections import Connections
from broker.embedded import attach
from broker.protocol.codec import decode_packet
from broker.protocol.constants import TRIGGER_AGE, TRIGGER_COUNT
from broker.protocol.messages import Batch
from broker.protocol.names import ShardKeys

NAMESPACE = "scenarios"
MAX_COUNT = 10
MAX_AGE_S = 0.5
BURST = 12
PAUSE_S = 0.6
TIMEOUT_S = 10.0
# Times are sent and compared in whole milliseconds, rounded here and cut off there.
CLOCK_STEP_MS = 2
TRIGGERS = {TRIGGER_COUNT: "count", TRIGGER_AGE: "age"}
EXPECTED = [("burst", "count", 10), ("burst", "age", 2), ("one write", "age", 1)]


@dataclass(frozen=True, slots=True)
class ObservedBatch:
    """One batch as received from the channel.

    Attributes:
        scenario: the scenario that it belongs to.
        offset: of the batch in its shard.
        trigger: "count" or "age".
        size: number of deltas.
        age_ms: from its oldest write to its publication.
        bytes: size of the packet.
    """

    scenario: str
    offset: int
    trigger: str
    size: int
    age_ms: int
    bytes: int


@asynccontextmanager
async def live_channel(url: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """Subscribe to the only shard; yield the packets published from now on."""
    connections = Connections(url)
    pubsub = connections.blocking().pubsub()
    try:
        await pubsub.subscribe(ShardKeys.of(NAMESPACE, 0, 1).channel)
        messages = pubsub.listen()
        await anext(messages)
        yield (message["data"] async for message in messages)
    finally:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        await connections.close()


async def receive(
    packets: AsyncIterator[bytes], scenario: str, written: Sequence[float]
) -> list[ObservedBatch]:
    """Return the batches that arrive until they contain all writes.

    Args:
        packets: of the live channel.
        scenario: its name.
        written: wall-clock time of each write, in seconds and in the order of writing, which
            batches keep; the server has the same clock.
    """
    seen: list[ObservedBatch] = []
    arrived = 0
    async with asyncio.timeout(TIMEOUT_S):
        while arrived < len(written):
            data = await anext(packets)
            packet = decode_packet(data)
            if isinstance(packet, Batch):
                age_ms = round(packet.time_ms - written[arrived] * 1000)
                trigger = TRIGGERS[packet.trigger]
                seen.append(
                    ObservedBatch(
                        scenario, packet.offset, trigger, packet.deltas, age_ms, len(data)
                    )
                )
                arrived += packet.deltas
    return seen


async def observe(url: str) -> list[ObservedBatch]:
    """Run both scenarios and return all batches."""
    async with (
        live_channel(url) as packets,
        Producer(
            url,
            namespace=NAMESPACE,
            local_delta_max_age=MAX_AGE_S,
            local_delta_max_count=MAX_COUNT,
        ) as producer,
    ):
        written = []
        for number in range(BURST):
            written.append(time())
            await producer.set(str(number), number / 8)
        seen = await receive(packets, "burst", written)
        await asyncio.sleep(PAUSE_S)
        written = [time()]
        await producer.set("99", 123.456)
        return seen + await receive(packets, "one write", written)


def is_as_expected(seen: Sequence[ObservedBatch]) -> bool:
    """Whether triggers and sizes are as expected, and no batch by age came early."""
    if [(batch.scenario, batch.trigger, batch.size) for batch in seen] != EXPECTED:
        return False
    due_ms = MAX_AGE_S * 1000 - CLOCK_STEP_MS
    return all((batch.age_ms >= due_ms) == (batch.trigger == "age") for batch in seen)


def table(seen: Sequence[ObservedBatch]) -> Table:
    """Return the batches as a table."""
    drawn = Table(title=f"thresholds: {MAX_COUNT} deltas, {MAX_AGE_S * 1000:.0f} ms")
    for title in ("scenario", "trigger"):
        drawn.add_column(title)
    for title in ("offset", "size", "age", "bytes"):
        drawn.add_column(title, justify="right")
    for batch in seen:
        numbers = (f"{batch.offset}", f"{batch.size}", f"{batch.age_ms} ms", f"{batch.bytes}")
        drawn.add_row(batch.scenario, batch.trigger, *numbers)
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/scenarios",
        description=__doc__,
        epilog="Exit status: 0 if the batches are as expected, 1 if not.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    options = parser.parse_args(argv)
    try:
        with attach(None, workers_for=NAMESPACE) as server:
            seen = asyncio.run(observe(server.url))
    except (BrokerError, TimeoutError) as error:
        print(f"scripts/scenarios: {error or 'a batch did not arrive'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    good = is_as_expected(seen)
    if options.json:
        report: dict[str, Any] = {"batches": [asdict(batch) for batch in seen], "expected": good}
        print(json.dumps(report))
    else:
        Console(highlight=False).print(table(seen))
        print("as expected" if good else f"NOT as expected: {EXPECTED}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
