"""The messages of the protocol as frozen values: no I/O, no bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from broker.protocol.constants import NO_ID, RECORD_BYTES
from broker.protocol.operations import OP_RECORDS

Value: TypeAlias = (
    "bool | int | float | str | bytes | datetime | Sequence[Value] | Mapping[str, Value] | None"
)
# A value between writer and reader: a scalar or text as it is, anything else packed. Nobody in
# between looks into packed bytes; `broker.protocol.cells` makes and reads them.
Cell: TypeAlias = bool | int | float | str | bytes | None
CELL_TYPES: Final = frozenset((type(None), bool, int, float, str, bytes))


@dataclass(frozen=True, slots=True)
class Position:
    """A point in the history of one shard: the offset orders it, the batch id distinguishes forks.

    Attributes:
        epoch: identifies the history, 8 random bytes; empty if none is known.
        offset: number of the last batch, 0 before the first.
        batch_id: random id of that batch, 8 bytes; zeros before the first.
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
        values: cells, as many as `keys`; None for deletes.
        timestamps: wall-clock milliseconds, as long as `keys`; None if not recorded.
    """

    op: int
    keys: list[str]
    values: list[Cell] | None
    timestamps: list[int] | None = None


class TableKey(NamedTuple):
    """Identifies a table: tables of the same name and different kinds are independent.

    Attributes:
        name: letters, digits, `_`, `.`, `-`.
        kind: one of `TABLE_KINDS`: types of keys and values.
    """

    name: str
    kind: str

    @property
    def is_named(self) -> bool:
        """Whether keys are text, each sent once and then referred to by its id."""
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
    """Defines ids of a producer: `keys` have the ids from `first` on.

    Attributes:
        table: whose keys are text.
        first: id of the first key.
        keys: one at least.
    """

    table: TableKey
    first: int
    keys: list[str]

    @property
    def deltas(self) -> int:
        """Return 0: a definition holds no deltas."""
        return 0


@dataclass(frozen=True, slots=True)
class TableRun:
    """Deltas of one operation on one table, in columns of little-endian numbers.

    Attributes:
        op: `OP_SET`, `OP_DELETE`, `OP_INCREMENT`; `OP_RECORDS` sets from records.
        table: the table.
        keys: u32 ids, or a range of them, if keys are text; else u64 keys; or records of key, value
            and timestamp.
        values: float64 or int64, as many as keys; None for deletes and records.
        timestamps: int64, as many as keys; None if not given.
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
    """The content of one append: deltas of one node, in the order of its calls.

    Attributes:
        node: the writer's name.
        incarnation: number of the process that held the name.
        number: 1, 2, 3 ... per shard within the incarnation.
        time_ms: wall clock of the producer when it packed the chunk; only informative.
        runs: the deltas, in the order of application.
        tables: the deltas of tables, likewise.
        tables_fault: the rule that the part for tables breaks; then only that part is skipped.
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
    """The fields of every packet on the channel of a shard.

    Attributes:
        shard: number of the shard.
        epoch: of the shard.
        offset: of the batch; in a heartbeat of the head; in a notice of the snapshot.
        id: batch id at that offset.
        previous_id: batch id at the offset before.
        time_ms: Redis clock when it was published.
        covered: all appends up to this number are published.
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
        """The position of the packet in the history."""
        return Position(self.epoch, self.offset, self.id)


@dataclass(frozen=True, slots=True)
class Batch(Packet):
    """Published chunks, byte for byte as their producers packed them.

    Attributes:
        trigger: what made it due, one of the `TRIGGER_` numbers.
        oldest_ms: Redis clock when its oldest chunk was accepted.
        deltas: number of deltas, as reported by the producers.
        chunks: the chunks' bytes, in the order of acceptance.
        pending_since_ms: Redis clock when the oldest chunk that stays pending was accepted; None if
            nothing stays.
    """

    trigger: int = 0
    oldest_ms: int = 0
    deltas: int = 0
    chunks: list[bytes] = field(default_factory=list)
    pending_since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A batch as stored in the log.

    Attributes:
        packet: its bytes.
        bulk: the bulk chunks, for which it holds stand-ins, in order.
        nodes: the node of each chunk; may be fewer.
    """

    packet: bytes
    bulk: Sequence[bytes] = ()
    nodes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Size in bytes, bulk chunks included."""
        return len(self.packet) + sum(map(len, self.bulk))


@dataclass(frozen=True, slots=True)
class Heartbeat(Packet):
    """The head of the shard, published when it was quiet for a while.

    Attributes:
        pending_since_ms: Redis clock when the oldest pending chunk was accepted; None if nothing is
            pending.
    """

    pending_since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Notice(Packet):
    """Announces that the full-state hash holds everything up to this position."""


@dataclass(frozen=True, slots=True)
class Head:
    """The meta hash of a shard, from one atomic read.

    Attributes:
        position: the last batch.
        snapshot: where the full-state hash is complete; offset 0 if none was written.
        covered: all appends up to this number are published.
        quiet_s: seconds since the last packet of the shard, by the Redis clock.
        time_s: the Redis clock, in seconds.
        log_bytes: size of the log.
        fold_to: the full-state hash holds nothing beyond this offset.
        pending_since_s: no chunk that is still pending was accepted before, by the Redis clock;
            None if nothing is pending.
        heartbeat_s: interval of the flush worker that published the last heartbeat; 0: not known.
        max_age_s: the namespace's age threshold; 0: not known.
    """

    position: Position
    snapshot: Position
    covered: int
    quiet_s: float
    time_s: float
    log_bytes: int = 0
    fold_to: int = 0
    pending_since_s: float | None = None
    heartbeat_s: float = 0.0
    max_age_s: float = 0.0
