"""The test vectors of `broker/PROTOCOL.json`: read, and made into what they stand for.

The forms are those of section 12 of PROTOCOL.md. Nothing here uses a decoder of the product.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgpack

import broker
from broker.protocol.messages import (
    Batch,
    Chunk,
    Heartbeat,
    IdRange,
    Notice,
    Packet,
    Run,
    TableDefine,
    TableKey,
    TableOp,
    TableRun,
)

DOC: Final = Path(broker.__file__).with_name("PROTOCOL.md").read_text("utf-8")
PARTS: Final[dict[str, Any]] = json.loads(
    Path(broker.__file__).with_name("PROTOCOL.json").read_text("utf-8")
)
FORMS: Final[dict[str, Callable[[str], Any]]] = {
    "int": int,
    "float": float,
    "bin": bytes.fromhex,
    "time": datetime.fromisoformat,
}
OPERATIONS: Final = {"set": 1, "delete": 2, "increment": 3, "records": 5}


def vectors(part: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a part, by name."""
    named = {entry["name"]: entry for entry in PARTS[part]}
    assert len(named) == len(PARTS[part]), "two vectors of the same name"
    return named


def chosen(part: str, *members: str) -> list[str]:
    """Return the names of the entries that have one of these members."""
    return [name for name, entry in vectors(part).items() if any(one in entry for one in members)]


def rules_of(heading: str, intro: str) -> list[int]:
    """Return the numbers of the first list of PROTOCOL.md behind a heading and a text."""
    rest = DOC
    for before in (f"\n{heading}", intro):
        _, found, rest = rest.partition(before)
        assert found, before
    numbers: list[int] = []
    for line in rest.splitlines()[1:]:
        number, dot, _ = line.partition(". ")
        if dot and number.isdecimal():
            numbers.append(int(number))
        elif numbers and not line.startswith("   "):
            break
    return numbers


def raw(form: str | list[Any]) -> bytes:
    """Return the bytes of a text in hex, or of pieces of which some are repeated."""
    if isinstance(form, str):
        return bytes.fromhex(form)
    return b"".join(
        bytes.fromhex(piece) if isinstance(piece, str) else bytes.fromhex(piece[0]) * piece[1]
        for piece in form
    )


def value_of(form: Any) -> Any:
    """Return the value that a reversible form stands for."""
    if isinstance(form, list):
        return [value_of(one) for one in form]
    if not isinstance(form, dict):
        return form
    [(kind, content)] = form.items()
    if kind == "map":
        return {key: value_of(one) for key, one in content.items()}
    return FORMS[kind](content)


def cell_of(form: Any) -> Any:
    """Return the cell of a value that a reversible form stands for, or one that was packed."""
    if isinstance(form, dict) and "packed" in form:
        return raw(form["packed"])
    value = value_of(form)
    is_plain = value is None or type(value) in {bool, int, float, str}
    return value if is_plain else msgpack.packb(value, datetime=True)


# -- chunks and packets ---------------------------------------------------------------------------


def chunk_of(form: Mapping[str, Any]) -> Chunk:
    """Return the chunk that an entry describes."""
    numbers = [value_of(form[one]) for one in ("incarnation", "number", "time")]
    runs = [
        Run(
            OPERATIONS[run["operation"]],
            run["keys"],
            None if run.get("values") is None else [cell_of(one) for one in run["values"]],
            value_of(run.get("timestamps")),
        )
        for run in form["runs"]
    ]
    return Chunk(form["node"], *numbers, runs, [_part_of(one) for one in form.get("tables", [])])


def _part_of(form: Mapping[str, Any]) -> TableOp:
    table = TableKey(form["table"], form["kind"])
    if form["operation"] == "define":
        return TableDefine(table, form["first"], form["keys"])
    letter = "d" if table.is_float else "q"
    op = OPERATIONS[form["operation"]]
    if form["operation"] == "records":
        rows = zip(*(value_of(form[one]) for one in ("keys", "values", "timestamps")), strict=True)
        return TableRun(op, table, b"".join(struct.pack(f"<Q{letter}q", *row) for row in rows))
    keys: bytes | IdRange
    if isinstance(form["keys"], dict):
        keys = IdRange(form["keys"]["first"], form["keys"]["size"])
    else:
        keys = _column("I" if table.is_named else "Q", form["keys"]) or b""
    return TableRun(
        *(op, table, keys),
        *(_column(letter, form.get("values")), _column("q", form.get("timestamps"))),
    )


def _column(letter: str, numbers: list[Any] | None) -> bytes | None:
    if numbers is None:
        return None
    return struct.pack(f"<{len(numbers)}{letter}", *value_of(numbers))


def packet_of(form: Mapping[str, Any]) -> Packet:
    """Return the packet that an entry describes."""
    prefix = [
        *(form["shard"], bytes.fromhex(form["epoch"]), value_of(form["offset"])),
        *(bytes.fromhex(form["id"]), bytes.fromhex(form["previous"])),
        *(value_of(form["time"]), value_of(form["covered"])),
    ]
    since = {"pending_since_ms": value_of(form.get("pending_since"))}
    if form["kind"] == "notice":
        return Notice(*prefix)
    if form["kind"] == "heartbeat":
        return Heartbeat(*prefix, **since)
    return Batch(
        *(*prefix, form["trigger"], value_of(form["oldest"]), value_of(form["deltas"])),
        *([raw(one) for one in form["chunks"]],),
        **since,
    )
