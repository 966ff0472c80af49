"""A producer process that writes at a constant rate, and records what Redis accepts."""

from __future__ import annotations

import argparse
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from broker import (
    BrokerError,
    BufferFullError,
    DataLostError,
    FencedError,
    FlushTimeoutError,
    Producer,
)
from broker.backend import session
from broker.backend.commands import Commands
from broker.backend.replies import Accepted, Busy, Missing, NoDictionary
from broker.config import SETTINGS
from broker.core.sent_chunks import Packed
from broker.protocol.names import ShardKeys
from broker.testing.journal import Journal
from broker.testing.records import Appended, Counted, Fenced, Measured, digest_of_chunks
from tests.chaos.keyspace import GROUPS, MEMBERS, OWN_KEYS, SHARDS, SHARED_KEYS, group_keys

KEEP_SECONDS = 12.0
# Small, so that an outage fills it.
BUFFER_BYTES = 160 << 10
TURN_S = 0.05
DELTAS_A_TURN = 8
BIG_BYTES = 70_000
# How often each kind of change is made.
MIX = {
    "own": 60,
    "shared": 30,
    "delete": 20,
    "count": 40,
    "count all": 30,
    "big": 1,
    "group": 20,
}
FLUSH_EVERY_S = 1.0
FLUSH_TIMEOUT_S = 30.0
# How long a fenced process waits before it acquires its node name again.
FENCED_PAUSE_S = 1.5


class Recorded(Commands):
    """The commands, recording every accepted chunk in the journal."""

    journal: Journal
    incarnations: dict[int, int]

    async def append(
        self,
        keys: ShardKeys,
        node: str,
        incarnation: int,
        token: bytes,
        chunks: Sequence[Packed],
        **rest: Any,
    ) -> list[Accepted | Missing | Busy | NoDictionary]:
        """Append, and record the accepted chunks."""
        replies = await super().append(keys, node, incarnation, token, chunks, **rest)
        shard = shard_number(keys)
        self.incarnations[shard] = incarnation
        for chunk, reply in zip(chunks, replies, strict=True):
            if isinstance(reply, Accepted):
                self.journal.write(
                    Appended(
                        at=monotonic(),
                        node=node,
                        incarnation=incarnation,
                        shard=shard,
                        number=chunk.number,
                        deltas=chunk.deltas,
                        digest=digest_of_chunks([chunk.data]),
                        append=reply.append,
                        epoch=reply.epoch,
                        duplicate=reply.duplicate,
                    )
                )
        return replies


def shard_number(keys: ShardKeys) -> int:
    """Return the number of a shard from its hash tag."""
    return int(keys.meta.partition("{")[2].partition("}")[0].rpartition(":")[2].partition(".")[0])


def incarnations() -> tuple[int, ...]:
    """Return the incarnations of the producer of this process by shard; 0 if it has none."""
    return tuple(Recorded.incarnations.get(shard, 0) for shard in range(SHARDS))


class Writer:
    """Writes until it is stopped, then flushes and records its final counters.

    Attributes:
        called: deltas of the calls that the current producer accepted.
        reported: deltas that it reported as lost.
    """

    def __init__(self, node: str, seed: int, journal: Journal) -> None:
        self.node = node
        self.chance = random.Random(seed)
        self.journal = journal
        self.called = self.reported = 0
        self.stopping = False
        self.written = 0

    def fenced(self, producer: Producer, error: FencedError) -> None:
        """Record that another process acquired the name; only after the producer was closed."""
        self.record(producer)
        self.journal.write(Fenced(monotonic(), self.node, incarnations(), str(error)))

    def run(self, producer: Producer) -> None:
        """Write, flush now and then, and end with everything accepted."""
        self.called = self.reported = 0
        flush_at = monotonic() + FLUSH_EVERY_S
        while not self.stopping:
            try:
                for _ in range(DELTAS_A_TURN):
                    self.write(producer)
            except BufferFullError:
                pass
            if monotonic() > flush_at:
                self.flush(producer, FLUSH_EVERY_S)
                self.record(producer)
                flush_at = monotonic() + FLUSH_EVERY_S
            sleep(TURN_S)
        self.flush(producer, FLUSH_TIMEOUT_S)
        self.record(producer, final=True)

    def write(self, producer: Producer) -> None:
        """Make one random change."""
        chance = self.chance
        self.written += 1
        (what,) = chance.choices(list(MIX), list(MIX.values()))
        deltas = 1
        match what:
            case "own":
                producer.set(
                    f"own/{self.node}/{chance.randrange(OWN_KEYS)}", chance.getrandbits(60)
                )
            case "shared":
                key = f"shared/{chance.randrange(SHARED_KEYS)}"
                producer.set(key, f"{self.node} {self.written}")
            case "delete":
                producer.delete(f"shared/{chance.randrange(SHARED_KEYS)}")
            case "count":
                producer.increment(f"count/{self.node}", chance.randrange(1, 100))
            case "count all":
                producer.increment("count/all")
            case "big":
                # A bulk chunk, larger than the internal buffer of a connection, so that the output
                # buffer limits take effect.
                producer.set(f"big/{self.node}", bytes(BIG_BYTES))
            case "group":
                value = f"{self.node} {self.written}"
                producer.set_many(dict.fromkeys(group_keys(chance.randrange(GROUPS)), value))
                deltas = MEMBERS
        self.called += deltas

    def flush(self, producer: Producer, timeout: float) -> None:
        """Flush, and count the deltas reported as lost."""
        try:
            producer.flush(timeout)
        except FlushTimeoutError:
            pass
        except DataLostError as error:
            self.reported += error.lost

    def record(self, producer: Producer, *, final: bool = False) -> None:
        """Record the counters, and the size of the buffer."""
        counters = producer.stats()
        now = monotonic()
        self.journal.write(
            Counted(
                now,
                self.node,
                incarnations(),
                counters.as_dict(),
                self.reported,
                KEEP_SECONDS,
                final=final,
                called=self.called,
            )
        )
        self.journal.write(Measured(now, "producer buffer", counters.buffer_bytes, BUFFER_BYTES))


def main() -> None:
    """Write until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument(
        "--once", action="store_true", help="exit when another process acquires the name"
    )
    options = parser.parse_args()
    journal = Journal(options.journal)
    Recorded.journal = journal
    vars(session)["Commands"] = Recorded
    writer = Writer(options.node, options.seed, journal)

    def stop(_number: int, _frame: object) -> None:
        writer.stopping = True

    signal.signal(signal.SIGTERM, stop)
    while not writer.stopping:
        Recorded.incarnations = {}
        producer = None
        try:
            with Producer(
                options.url,
                namespace=options.namespace,
                node=options.node,
                shards=SHARDS,
                keep_seconds=KEEP_SECONDS,
                buffer_bytes=BUFFER_BYTES,
                full_timeout=SETTINGS["full_timeout"].low,
            ) as producer:
                writer.run(producer)
        except FencedError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            if producer is not None:
                writer.fenced(producer, error)
            if options.once:
                return
            sleep(FENCED_PAUSE_S)
        except BrokerError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            sleep(TURN_S)


if __name__ == "__main__":
    main()
