"""Which chunks are refused: the numbered rules of PROTOCOL.md, each broken and nearly broken."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import pytest
import zstandard

import broker
from broker.errors import DecodeError
from broker.protocol.codec import (
    decode_chunk,
)
from broker.protocol.frames import FrameReader
from tests.check_sums import checked, with_check

CHECK = 5  # bytes of the last element of a chunk
DOC = Path(broker.__file__).with_name("PROTOCOL.md").read_text("utf-8")


def chunk_of(runs: Any = (), *, extra: bytes = b"", **fields: Any) -> bytes:
    """A chunk of any content; `extra` is one packed element behind the runs."""
    head = {"version": 3, "node": "n", "incarnation": 1, "number": 1, "time": 0} | fields
    packed = [msgpack.packb(part, datetime=True) for part in (*head.values(), list(runs))]
    return with_check(bytes([0x90 | len(packed) + bool(extra)]) + b"".join(packed) + extra)


def with_field(name: str, value: object) -> bytes:
    """A chunk whose head has this value in one place."""
    fields: dict[str, Any] = {name: value}
    return chunk_of(**fields)


def one_run(*run: Any) -> bytes:
    """A chunk with one run of these elements."""
    return chunk_of([list(run)])


def one_value(packed: bytes) -> bytes:
    """A chunk that sets key `k` to a value given as bytes."""
    return checked(one_run(1, ["k"], [0], None)[: -CHECK - 2] + packed + b"\xc0")


def nested(levels: int) -> Any:
    """A value of so many arrays, one in the other."""
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


def sized(size: int) -> bytes:
    """A good chunk of exactly so many bytes."""
    spare = size - len(one_run(1, ["k"], ["x" * 70_000], None))
    return one_run(1, ["k"], ["x" * (70_000 + spare)], None)


def chunk_with(frame: bytes) -> bytes:
    """A chunk with these bytes as its compressed part."""
    return checked(chunk_of()[: -CHECK - 1] + msgpack.packb(frame))


def compressed(content: bytes) -> bytes:
    """A chunk that holds this content compressed."""
    return chunk_with(zstandard.compress(content))


LARGEST = 4 << 20
NO_KEYS: list[Any] = [None, {}, [b"k"], [1], [""], ["x" * 1025], ["ä" * 513]]
NO_VALUES: list[Any] = [None, [], [1, 2], {"a": 1}, 1]
NO_STAMPS: list[Any] = [[], [1, 2], [1.0], [True], [None], {}, 1]
BROKEN: dict[int, list[bytes]] = {
    1: [sized(LARGEST + 1)],
    2: [
        b"",
        chunk_of()[:-1],
        chunk_of() + b"\xc0",
        chunk_of()[1:],
        b"\x96" + chunk_of()[1:-CHECK],
        chunk_of()[:-1] + bytes((chunk_of()[-1] ^ 1,)),
        chunk_of().replace(b"\xa1n", b"\xa1m"),
        *(
            body + crc32(body).to_bytes(4)
            for body in (chunk_of()[:-CHECK] + form for form in (b"\xcf" + bytes(4), b"\xc4\x04"))
        ),
    ],
    3: [
        checked(b"\x98" + chunk_of()[1:-CHECK]),
        checked(chunk_of()[:-CHECK] + b"\xc0"),
        checked(b"\xc1"),
        one_value(b"\xc1"),
        one_value(b"\xa1\xff"),
        one_value(b"\xa3\xed\xa0\x80"),
        chunk_of(extra=b"\xa1\xff"),
        chunk_of(extra=b"\x81\x01\x02"),
        chunk_of(extra=b"\xd4\x05\x00"),
        one_value(b"\xd4\x05\x00"),
        one_value(b"\xc7\x05\xff12345"),
        one_value(b"\xc7\x0c\xff" + (1_000_000_000).to_bytes(4) + bytes(8)),
        one_value(b"\xc7\x0c\xff" + bytes(4) + (253_402_300_800).to_bytes(8)),
        one_value(b"\xc7\x0c\xff" + bytes(4) + (-62_135_596_801).to_bytes(8, signed=True)),
        chunk_of(extra=b"\x91" * 1024 + b"\xc0"),
    ],
    4: [
        checked(b""),
        with_check(b"\x80\xa1k"),
        checked(b"\xc4\x05"),
        checked(b"\x96" + chunk_of()[1 : -CHECK - 1]),
    ],
    5: [with_field("version", bad) for bad in (0, 1, 2, 4, 3.0, True, None, "3")],
    6: [
        with_field("node", b"n"),
        with_field("node", None),
        checked(chunk_of()[: -CHECK - 1] + b"\x80"),
        checked(chunk_of()[: -CHECK - 1] + b"\xc0"),
    ],
    7: [
        with_field(name, bad)
        for name in ("incarnation", "number", "time")
        for bad in (-1, 1.0, True, None, "1")
    ],
    8: [chunk_of([1]), chunk_of([{}]), one_run(), one_run(1, ["k"], [1])],
    9: [one_run(op, ["k"], [1], None) for op in (0, 4, -1, None, "1", [1], True, 1.0, 3.0)]
    + [one_run(2.0, ["k"], None, None)],
    10: [
        one_run(2, [], None, None),
        one_run(1, ["k", 1], [1, 1], None),
        *(one_run(1, keys, [1], None) for keys in NO_KEYS),
    ],
    11: [one_run(op, ["k"], values, None) for op in (1, 3) for values in NO_VALUES]
    + [one_run(2, ["k"], values, None) for values in ([], [None], 0)],
    12: [
        one_run(3, ["k"], [bad], None)
        for bad in (True, None, "1", b"1", [1], datetime(2026, 11, 22, 12, tzinfo=UTC))
    ],
    13: [
        one_run(1, ["k"], [bad], None)
        for bad in (
            [],
            [1],
            nested(33),
            {},
            {"a": 1},
            {b"a": 1},
            datetime(2026, 11, 22, tzinfo=UTC),
        )
    ],
    14: [
        one_run(op, ["k"], None if op == 2 else [1], stamps)
        for op in (1, 2, 3)
        for stamps in NO_STAMPS
    ],
    15: [compressed(b"\x80"), compressed(b"\x90"), compressed(b"\x91\xc0"), chunk_with(b"\x90")],
}
KEPT: dict[int, list[bytes]] = {
    1: [sized(LARGEST)],
    2: [checked(chunk_of()[:-CHECK] + b"\xc4\x05")],
    3: [
        one_value(b"\xc4\x02\xa1\xff"),
        one_value(b"\xc4\x03\xd4\x05\x00"),
        chunk_of(extra=b"\xd6\xff" + b"\xff" * 4),
        chunk_of(extra=b"\xc7\x0c\xff" + (999_999_999).to_bytes(4) + (253_402_300_799).to_bytes(8)),
        chunk_of(extra=b"\xc7\x0c\xff" + bytes(4) + (-62_135_596_800).to_bytes(8, signed=True)),
        chunk_of(extra=b"\x81\xc4\x01a\x02"),
        chunk_of(extra=b"\x91" * 1023 + b"\xc0"),
    ],
    4: [chunk_of(extra=b"\x01")],
    6: [chunk_of(node="")],
    7: [chunk_of(incarnation=0, number=0, time=(1 << 64) - 1)],
    8: [chunk_of([[1, ["k"], [1], None, "later"]]), chunk_of([])],
    9: [checked(b"\x97\xcc\x03" + one_run(1, ["k"], [1], None)[2:-CHECK])],
    10: [one_run(1, ["x" * 1024, "ä" * 512, "k", "k"], [1, 2, 3, 4], None)],
    11: [one_run(2, ["k"], None, None)],
    12: [
        one_run(3, ["k"], [bad], None)
        for bad in (1.5, -(1 << 63), (1 << 64) - 1, float("nan"), float("inf"))
    ],
    13: [
        one_run(1, ["k"], [good], None)
        for good in (
            None,
            True,
            1,
            1.5,
            "",
            "x" * (2 << 20),
            b"",
            b"\x91\x01",
            b"\xc1",
            bytes(2 << 20),
        )
    ],
    14: [one_run(1, ["k", "l"], [1, 2], [-1, 1 << 63]), one_run(2, ["k"], None, [0])],
    15: [compressed(b"\x91\x90"), compressed(b"\x93\x90\x90\x01")],
}


def test_every_rule_has_examples() -> None:
    """The numbered rules of the document are the ones tried here."""
    section = DOC.split("### 6.3")[1].split("### 6.4")[0]
    assert [int(n) for n in re.findall(r"^(\d+)\. ", section, re.MULTILINE)] == list(BROKEN)


@pytest.mark.parametrize(
    ("rule", "data"), [(rule, data) for rule, many in BROKEN.items() for data in many]
)
def test_a_chunk_that_breaks_a_rule_is_refused(rule: int, data: bytes) -> None:
    """Each way to break a rule costs the whole chunk; the check sum fits if it is another rule."""
    with pytest.raises(DecodeError) as caught:
        decode_chunk(data, FrameReader())
    assert ("check sum" in str(caught.value)) is (rule == 2)
    assert rule in BROKEN


@pytest.mark.parametrize(
    ("rule", "data"), [(rule, data) for rule, many in KEPT.items() for data in many]
)
def test_a_chunk_at_the_edge_of_a_rule_is_kept(rule: int, data: bytes) -> None:
    """What only comes near to breaking a rule is read."""
    decode_chunk(data, FrameReader())
    assert rule in KEPT
