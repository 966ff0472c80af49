"""Hypothesis strategies for everything that the protocol can carry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st

from broker.protocol.cells import cell_of
from broker.protocol.constants import INT_MAX, INT_MIN, TRIGGER_AGE, TRIGGER_COUNT
from broker.protocol.messages import Batch, Chunk, Heartbeat, Notice, Packet, Run
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
INTEGERS = st.integers(INT_MIN, INT_MAX)
NUMBERS = st.one_of(INTEGERS, st.floats())
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    st.binary(max_size=40),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001 - Hypothesis adds the zone
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=12,
)

# What others may pack: values, and bytes that are none.
CELLS: st.SearchStrategy[Any] = st.one_of(
    *(st.none(), st.booleans(), NUMBERS, TEXTS),
    VALUES.map(lambda value: cell_of(value)[0]),
    st.binary(max_size=40),
)

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
EIGHT_BYTES = st.binary(min_size=8, max_size=8)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Draw a run of any operation, with or without timestamps."""
    op = draw(st.sampled_from([OP_SET, OP_DELETE, OP_INCREMENT]))
    keys = draw(st.lists(KEYS, min_size=1, max_size=4))
    count = len(keys)
    column = {OP_SET: CELLS, OP_INCREMENT: NUMBERS}.get(op)
    values = None if column is None else draw(st.lists(column, min_size=count, max_size=count))
    stamps = draw(st.none() | st.lists(INTEGERS, min_size=count, max_size=count))
    return Run(op, keys, values, stamps)


CHUNKS = st.builds(Chunk, TEXTS, U64, U64, U64, st.lists(runs(), max_size=4))
_PREFIX = (U16, EIGHT_BYTES, U64, EIGHT_BYTES, EIGHT_BYTES, U64, U64)
PACKETS: st.SearchStrategy[Packet] = st.one_of(
    st.builds(Heartbeat, *_PREFIX, st.none() | U64),
    st.builds(Notice, *_PREFIX),
    st.builds(
        Batch,
        *_PREFIX,
        st.sampled_from([TRIGGER_COUNT, TRIGGER_AGE, 0, 4, 127]),
        U64,
        U32,
        st.lists(st.binary(max_size=40), max_size=3),
        st.none() | U64,
    ),
)
