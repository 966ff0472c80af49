"""The table of operations: name, code, column and effect of each.

The codec checks runs with it, the fold applies them with it, and the buffer conflates with it.
`Change.operation` and the command line use its names, and PROTOCOL.md is tested against it. It has
no I/O and is cheap to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import compress, count, repeat
from math import nan
from operator import is_
from typing import Any, Final, Literal, TypeAlias

from broker.protocol.constants import INT_MAX, INT_MIN
from broker.protocol.refusal import shown

# Codes of the operations of a run ...
OP_SET: Final = 1
OP_DELETE: Final = 2
OP_INCREMENT: Final = 3
# ... reserved ones, with the feature word each of them needs: version 3 will have them ...
RESERVED: Final[Mapping[int, tuple[str, str]]] = {
    4: ("touch", "ttl"),
    5: ("persist", "ttl"),
    6: ("create", "conditions"),
    7: ("replace", "conditions"),
    8: ("cas", "conditions"),
    9: ("block", "conditions"),
}
# ... and of parts that only tables have.
OP_DEFINE: Final = 4
OP_RECORDS: Final = 5

Operation: TypeAlias = Literal["set", "delete", "increment"]

Values: TypeAlias = dict[str, Any]  # key -> cell
# Applies a run of keys and their column to `values`; returns what each key holds after its delta,
# and the indexes in the run of the deltas that changed nothing.
Effect: TypeAlias = Callable[
    [Values, Sequence[str], Sequence[Any] | None], tuple[Iterable[Any], Sequence[int]]
]


class Column(Enum):
    """What the column of values of a run holds."""

    NOTHING = auto()
    VALUES = auto()
    AMOUNTS = auto()


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        name: what `Change.operation`, the command line and PROTOCOL.md call it.
        code: its number in a run.
        column: what its column of values holds.
        overwrites: whether the result is independent of the earlier value of the key: then a
            buffer may drop older deltas of the key, and folding reads nothing.
        removes: whether it removes the key.
        refuses: whether a delta that changed nothing counts as refused.
        effect: applies a run of it.
        column_rule: the cell of PROTOCOL.md about its column.
        effect_rule: the cell of PROTOCOL.md about its effect.
    """

    name: Operation
    code: int
    column: Column
    overwrites: bool
    removes: bool
    refuses: bool
    effect: Effect
    column_rule: str
    effect_rule: str


class Form(Enum):
    """The layout of a part of a chunk for a table."""

    COLUMNS = auto()
    RECORDS = auto()
    DEFINE = auto()


@dataclass(frozen=True, slots=True)
class TablePart:
    """One kind of part of a chunk for tables.

    Attributes:
        name: what PROTOCOL.md calls it.
        code: its number.
        form: its layout.
        op: the operation of its rows; None if it has no rows.
        elements_rule: the cell of PROTOCOL.md about its elements after code, name and kind.
    """

    name: str
    code: int
    form: Form
    op: Op | None
    elements_rule: str


# -- effects --------------------------------------------------------------------------------------


def _set(
    values: Values, keys: Sequence[str], given: Sequence[Any] | None
) -> tuple[Iterable[Any], Sequence[int]]:
    if len(keys) == 1 and given:
        # As a column of its own, a single delta would cost three times as much.
        values[keys[0]] = given[0]
    else:
        values.update(zip(keys, given or (), strict=True))
    return given or (), ()


def _delete(
    values: Values, keys: Sequence[str], _given: Sequence[Any] | None
) -> tuple[Iterable[Any], Sequence[int]]:
    before = len(values)
    held = list(map(values.pop, keys, repeat(_ABSENT)))
    removed = before - len(values)
    # Usually all keys were present, or none; checking each would cost as much as deleting it.
    absent: Sequence[int] = ()
    if not removed:
        absent = range(len(keys))
    elif removed < len(keys):
        absent = [*compress(count(), map(is_, held, repeat(_ABSENT)))]
    return repeat(None, len(keys)), absent


def _increment(
    values: Values, keys: Sequence[str], amounts: Sequence[Any] | None
) -> tuple[Iterable[Any], Sequence[int]]:
    """Integers stay integers within the 64-bit range; if one side is a float, so is the sum.

    A key that holds no number (a bool is none) refuses the delta.
    """
    after: list[Any] = []
    refused: list[int] = []
    for key, amount in zip(keys, amounts or (), strict=True):
        # An absent key counts as 0.
        value = values.get(key, 0)
        kind = type(value)
        if kind is int or kind is float:
            total = value + amount
            if total != total:  # noqa: PLR0124 - NaN
                # Processors differ in the sign of inf - inf, and digests count it.
                total = nan
            if type(total) is float or INT_MIN <= total <= INT_MAX:
                values[key] = total
                after.append(total)
                continue
        refused.append(len(after))
        after.append(value)
    return after, refused


_ABSENT: Final = object()

# -- the table ------------------------------------------------------------------------------------

_SET: Final = Op(
    name="set",
    code=OP_SET,
    column=Column.VALUES,
    overwrites=True,
    removes=False,
    refuses=False,
    effect=_set,
    column_rule="array, one a key",
    effect_rule="the key now has the value",
)
_DELETE: Final = Op(
    name="delete",
    code=OP_DELETE,
    column=Column.NOTHING,
    overwrites=True,
    removes=True,
    refuses=False,
    effect=_delete,
    column_rule="nil",
    effect_rule="the key is gone; an absent key is no error",
)
_INCREMENT: Final = Op(
    name="increment",
    code=OP_INCREMENT,
    column=Column.AMOUNTS,
    overwrites=False,
    removes=False,
    refuses=True,
    effect=_increment,
    column_rule="array of numbers, one a key",
    effect_rule="see 6.4",
)

OPERATIONS: Final[Mapping[int, Op]] = {op.code: op for op in (_SET, _DELETE, _INCREMENT)}
NAMED: Final[Mapping[Operation, Op]] = {op.name: op for op in OPERATIONS.values()}

TABLE_PARTS: Final[Mapping[int, TablePart]] = {
    part.code: part
    for part in (
        TablePart(
            *("define", OP_DEFINE, Form.DEFINE, None),
            "array of str (the keys), id of the first, nil",
        ),
        TablePart("set", OP_SET, Form.COLUMNS, _SET, "keys, values, timestamps"),
        TablePart("delete", OP_DELETE, Form.COLUMNS, _DELETE, "keys, nil, timestamps"),
        TablePart("increment", OP_INCREMENT, Form.COLUMNS, _INCREMENT, "keys, amounts, timestamps"),
        TablePart(
            *("records", OP_RECORDS, Form.RECORDS, _SET),
            "bin of records of 24 bytes: key u64, value, timestamp i64; nil, nil",
        ),
    )
}


def unknown_operation(code: Any) -> str:
    """Return the fault of a run with an operation that is not in the table."""
    if type(code) is not int or code not in RESERVED:
        return f"unknown operation {shown(code)}"
    name, word = RESERVED[code]
    return f"operation {code} ({name}) needs the word {word}, which this program does not know"


def op_of_part(code: int) -> Op:
    """Return the operation of the rows of a table's run; a define has none."""
    op = TABLE_PARTS[code].op
    assert op is not None  # noqa: S101 - not a define
    return op
