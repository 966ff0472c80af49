"""The nouns of the protocol as frozen values: no I/O, no bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeAlias

from broker.protocol.constants import NO_ID, RECORD_BYTES
from broker.protocol.operations import OP_RECORDS

Value: TypeAlias = (
    "bool | int | float | str | bytes | datetime | Sequence[Value] | Mapping[str, Value] | None"
)


@dataclass(frozen=True, slots=True)
class Position:
    """A point in one shard's history: offsets order it, the batch id tells forks apart.

    Attributes:
        epoch: one life of the shard, 8 random bytes; empty before anything is known.
        offset: number of the last batch that is contained, 0 before the first.
        batch_id: that batch's random id, 8 bytes; zeros before the first.
    """

    epoch: bytes = b""
    offset: int = 0
    batch_id: bytes = NO_ID


@dataclass(frozen=True, slots=True)
class Run:
    """Deltas of one operation in columns: the n-th key goes with the n-th value.

    Attributes:
        op: one of the `OP_` numbers.
        keys: at least one key.
        values: as long as `keys`; None for deletes.
        timestamps: wall-clock milliseconds, as long as `keys`; None where not asked for.
    """

    op: int
    keys: list[str]
    values: list[Value] | None
    timestamps: list[int] | None = None


class TableKey(NamedTuple):
    """Which table: tables of one name and different kinds have nothing to do with each other.

    Attributes:
        name: letters, digits, `_`, `.`, `-`.
        kind: one of `TABLE_KINDS`: what keys and values are.
    """

    name: str
    kind: str

    @property
    def is_named(self) -> bool:
        """Whether keys are text, each written out once and then known by its id."""
        return self.kind.startswith("str")

    @property
    def is_float(self) -> bool:
        """Whether values are float64, else int64."""
        return self.kind.endswith("f64")


class IdRange(NamedTuple):
    """Consecutive ids: `size` of them from `first` on."""

    first: int
    size: int


@dataclass(frozen=True, slots=True)
class TableDefine:
    """What a producer's ids mean from here on: `keys` have the ids from `first` on.

    Attributes:
        table: which; its keys are text.
        first: id of the first key.
        keys: none, with `first` 0: this node will use none of its ids any more.
    """

    table: TableKey
    first: int
    keys: list[str]

    @property
    def deltas(self) -> int:
        """It holds no deltas."""
        return 0


@dataclass(frozen=True, slots=True)
class TableRun:
    """Deltas of one operation on one table, in columns of little-endian numbers.

    Attributes:
        op: `OP_SET`, `OP_DELETE`, `OP_INCREMENT`; `OP_RECORDS` sets from records.
        table: which.
        keys: u32 ids, or a range of them, where keys are text; else u64 keys; or the records, of
            key, value and timestamp.
        values: float64 or int64, as many as keys; None for deletes and records.
        timestamps: int64, as many as keys; None where not given.
    """

    op: int
    table: TableKey
    keys: bytes | IdRange
    values: bytes | None = None
    timestamps: bytes | None = None

    @property
    def deltas(self) -> int:
        """How many deltas it holds."""
        if isinstance(self.keys, IdRange):
            return self.keys.size
        if self.op == OP_RECORDS:
            return len(self.keys) // RECORD_BYTES
        return len(self.keys) // (4 if self.table.is_named else 8)


TableOp: TypeAlias = TableDefine | TableRun


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one append carried: one node's deltas, in the order of its calls.

    Attributes:
        node: the writer's name.
        incarnation: number of the process that held the name.
        number: 1, 2, 3 ... per shard within the incarnation.
        time_ms: the producer's wall clock when it packed; for people, decides nothing.
        runs: the deltas; applied in this order.
        tables: likewise those of tables, which have keys of their own.
        tables_fault: which rule the part for tables broke; it is skipped then, the rest is not.
    """

    node: str
    incarnation: int
    number: int
    time_ms: int
    runs: list[Run]
    tables: list[TableOp] = field(default_factory=list)
    tables_fault: str = ""

    @property
    def deltas(self) -> int:
        """How many deltas the chunk holds."""
        return sum(len(run.keys) for run in self.runs) + sum(part.deltas for part in self.tables)


@dataclass(frozen=True, slots=True)
class Packet:
    """What every packet on a shard's channel says.

    Attributes:
        shard: number of the shard.
        epoch: life of the shard.
        offset: batch: its own; heartbeat: the head; notice: the snapshot's.
        id: batch id at that offset.
        previous_id: batch id at the offset before.
        time_ms: Redis clock when it was published.
        covered: append number up to which everything is published.
    """

    shard: int
    epoch: bytes
    offset: int
    id: bytes
    previous_id: bytes
    time_ms: int
    covered: int

    @property
    def position(self) -> Position:
        """The point in history that this packet speaks of."""
        return Position(self.epoch, self.offset, self.id)


@dataclass(frozen=True, slots=True)
class Batch(Packet):
    """Drained chunks, byte for byte as their producers packed them.

    Attributes:
        trigger: what made it due, one of the `TRIGGER_` numbers.
        oldest_ms: Redis clock when its oldest chunk was accepted.
        deltas: how many deltas its producers said they put in.
        chunks: the chunks' bytes, in the order of acceptance.
    """

    trigger: int = 0
    oldest_ms: int = 0
    deltas: int = 0
    chunks: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A batch as the log holds it.

    Attributes:
        packet: its bytes.
        bulk: the chunks that it only stands for, in their order.
        nodes: of each of its chunks the node; may be fewer.
    """

    packet: bytes
    bulk: Sequence[bytes] = ()
    nodes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.packet) + sum(map(len, self.bulk))


@dataclass(frozen=True, slots=True)
class Heartbeat(Packet):
    """The head of the shard, told when nothing else was published for a while."""


@dataclass(frozen=True, slots=True)
class Notice(Packet):
    """The full-state hash now holds everything up to this position."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a shard's meta hash said in one atomic read.

    Attributes:
        position: the last batch.
        snapshot: where the full-state hash is complete; offset 0 if none was written.
        covered: append number up to which everything is published.
        quiet_s: seconds since the shard's last packet, by the Redis clock.
        time_s: the Redis clock, in seconds.
        log_bytes: size of the log.
        fold_to: no field of the full-state hash is from beyond this offset.
    """

    position: Position
    snapshot: Position
    covered: int
    quiet_s: float
    time_s: float
    log_bytes: int = 0
    fold_to: int = 0
