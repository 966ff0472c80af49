"""An operation that is only a row of the table passes from the producer to a replica's change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.core.buffer import ProducerBuffer
from broker.core.changes import ChangeColumns, observer
from broker.core.content import Content
from broker.core.fold import decode_chunks
from broker.engine import producer
from broker.engine.producer import ProducerEngine
from broker.errors import EncodeError
from broker.protocol.cells import CELLS
from broker.protocol.codec import decode_chunk
from broker.protocol.messages import Batch, Position
from broker.protocol.operations import OPERATIONS, Column, Op
from broker.runtime import clock
from broker.testing.lineage import apply
from tests.unit.change_rows import rows

MAXIMUM = 99


def _maximum(values: dict[str, Any], keys: Any, given: Any) -> tuple[list[Any], tuple[()]]:
    for key, amount in zip(keys, given, strict=True):
        values[key] = max(values.get(key, amount), amount)
    return [values[key] for key in keys], ()


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    name = cast("Any", "maximum")
    row = Op(
        *(name, MAXIMUM, Column.AMOUNTS),
        overwrites=False,
        removes=False,
        refuses=False,
        effect=_maximum,
        column_rule="",
        effect_rule="",
    )
    monkeypatch.setitem(cast("Any", OPERATIONS), MAXIMUM, row)
    monkeypatch.setitem(producer._CELLS, MAXIMUM, CELLS[row.column])


@pytest.fixture
def engine() -> ProducerEngine:
    """Give an engine of a producer with a buffer, and no server."""
    made = ProducerEngine(None, "n", {"node": "n1"})
    limits = {"max_bytes": 1 << 20, "max_count": 100, "chunk_bytes": 1 << 16}
    buffer = ProducerBuffer(node="n1", shards=1, **limits, keep_s=1.0, keep_bytes=1 << 20)
    room = SimpleNamespace(full={})
    sender = SimpleNamespace(buffer=buffer, stopped=None, wake=lambda _: None, room=room)
    made._sender = cast("Any", sender)
    made._session.keys = [cast("Any", None)]
    return made


def written(engine: ProducerEngine) -> bytes:
    """Return the chunk that holds everything put so far."""
    packed, _ = engine.buffer.next_chunk(0, clock.now(), 0.0, 7)
    assert packed is not None
    return packed.data


def test_a_row_of_the_table_is_all_that_the_way_of_a_delta_needs(engine: ProducerEngine) -> None:
    """Producer, buffer, codec, fold and changes know no operation of their own."""
    for amount in (3, 9, 5):
        assert engine.put(MAXIMUM, "k", amount) is None
    batch = Batch(0, b"epoch--1", 1, b"batch--1", b"batch--0", 0, 1, chunks=[written(engine)])
    content, changes = Content(), list[ChangeColumns]()
    chunks, bad = decode_chunks(batch)
    tally = content.apply(batch, chunks, observer(changes, Position(), 0))
    assert (bad, tally.applied, content.values) == ([], 3, {"k": 9})
    assert [(one.operation, one.value, one.timestamp_ms) for one in rows(changes)] == [
        ("maximum", 9, 7)
    ] * 3


def test_its_argument_is_checked_as_its_column_says(engine: ProducerEngine) -> None:
    """Amounts are numbers."""
    with pytest.raises(EncodeError, match="'x' is not a number"):
        engine.put(MAXIMUM, "k", "x")


def test_the_validators_refuse_an_operation_that_they_do_not_implement(
    engine: ProducerEngine,
) -> None:
    """They do not take it for another one."""
    engine.put(MAXIMUM, "k", 3)
    with pytest.raises(ValueError, match="does not implement operation 99"):
        apply({}, decode_chunk(written(engine)))


@pytest.mark.parametrize("column", Column)
def test_every_kind_of_column_has_a_check(column: Column) -> None:
    """Nothing is sent unchecked."""
    assert column in CELLS
