"""What others may write into a shard: every key of the protocol, in each wrong way. Generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from broker.protocol.names import ShardKeys, config_key

# Redis commands as a client without our library sends them.
Call = Callable[[Any], object]

HASHES: Final = ("config", "meta", "intake", "workers", "state", "tables")
LISTS: Final = ("queue", "stage", "ready", "dead")
OTHERS: Final = ("log", "lease")

META_IDS: Final = ("epoch", "id", "previous", "snap_id", "fold", "digest", "tables_digest")
META_NUMBERS: Final = (
    *("offset", "covered", "published", "max_age", "max_count", "published_at", "log_bytes"),
    *("logged", "bytes", "by_count", "by_age", "missing", "snap_offset", "snap_at", "fold_to"),
    *("dead", "fence", "records_lost"),
)
VALUES: Final[dict[str, bytes]] = {
    "text": b"nonsense",
    "empty": b"",
    "negative": b"-1",
    "float": b"1.5",
    "huge": b"9" * 40,
    "above_2_53": str((1 << 53) + 2).encode(),
    "infinite": b"inf",
    "binary": bytes(range(128, 160)),
    "long": b"x" * 100_000,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One damage.

    Attributes:
        name: key, field and way.
        call: does it, with a client of the server.
    """

    name: str
    call: Call


def cases(namespace: str, keys: ShardKeys, node: str) -> Iterator[Case]:
    """Yield every damage of a namespace of one shard that one node writes to."""
    yield from _of_types(namespace, keys, node)
    yield from _of_fields(keys.meta, (*META_IDS, *META_NUMBERS))
    config = config_key(namespace)
    yield from _of_fields(config, ("protocol", "shards", "created"))
    # The other values are words: whoever writes one makes another namespace of it.
    for way in ("float", "binary", "long"):
        yield Case(f"config features {way}", _hset(config, "features", VALUES[way]))
    yield Case("config features missing", lambda raw: raw.hdel(config, "features"))
    yield from _of_fields(keys.intake, (node,), with_missing=False)
    yield from _of_fields(keys.intake, (":head", ":limits", ":forgotten"))
    for at in range(0, 56, 5):
        yield Case(f"intake :head bit {at}", _flip_bit(keys.intake, ":head", at))
    # With another incarnation, token or chunk number it is a record like any other.
    for at in (16, 24, 32, 36, 40):
        yield Case(f"intake {node} bit {at}", _flip_bit(keys.intake, node, at))
    yield from _of_fields(keys.workers, ("somebody",), with_missing=False)
    for way, value in VALUES.items():
        yield Case(f"lease {way}", _set(keys.lease, value, seconds=5))
        yield Case(f"queue element {way}", _push(keys.queue, value))
        yield Case(f"queue element first {way}", _push(keys.queue, value, is_first=True))
        yield Case(f"intake name {way}", _hset(keys.intake, value, bytes(60)))
    for name, entry in {
        "all ones": b"\1" + b"\xff" * 21 + node.encode(),
        "of nothing": b"\1" + bytes(21) + node.encode(),
        "of nobody": b"\1" + bytes(21),
        "not UTF-8": b"\1" + bytes(21) + b"\xff\xfe",
    }.items():
        yield Case(f"queue entry {name}", _push(keys.queue, entry))
        yield Case(f"queue entry first {name}", _push(keys.queue, entry, is_first=True))
        yield Case(f"queue pair {name}", _push_pair(keys.queue, entry))
    yield Case("log batch one bit", flip_logged(keys.log))
    for field in META_NUMBERS:
        yield Case(f"meta {field} one bit", _flip(keys.meta, field, is_number=True))
    for field in META_IDS:
        yield Case(f"meta {field} one bit", _flip(keys.meta, field, is_number=False))


def _of_types(namespace: str, keys: ShardKeys, node: str) -> Iterator[Case]:
    for name in (*HASHES, *LISTS, *OTHERS):
        key = _key(namespace, keys, node, name)
        if name not in {"config", "intake", "state", "tables"}:
            yield Case(f"{name} gone", lambda raw, key=key: raw.delete(key))  # type: ignore[misc]
        for kind, make in {
            "a string": lambda raw, key: raw.set(key, "x"),
            "a list": lambda raw, key: raw.rpush(key, "x"),
            "a hash": lambda raw, key: raw.hset(key, "x", "x"),
            "a set": lambda raw, key: raw.sadd(key, "x"),
        }.items():
            yield Case(f"{name} is {kind}", _replace(key, make))


def _key(namespace: str, keys: ShardKeys, node: str, name: str) -> str:
    if name == "config":
        return config_key(namespace)
    return keys.stage(node) if name == "stage" else str(getattr(keys, name))


def _of_fields(key: str, fields: tuple[str, ...], *, with_missing: bool = True) -> Iterator[Case]:
    place = key.rpartition(":")[2]
    for field in fields:
        if with_missing:
            yield Case(
                f"{place} {field} missing",
                lambda raw, field=field: raw.hdel(key, field),  # type: ignore[misc]
            )
        for way, value in VALUES.items():
            yield Case(f"{place} {field} {way}", _hset(key, field, value))


def _replace(key: str, make: Callable[[Any, str], object]) -> Call:
    def call(raw: Any) -> None:
        # At once: the fleet writes to the key too.
        pipe = raw.pipeline(transaction=True)
        pipe.delete(key)
        make(pipe, key)
        pipe.execute()

    return call


def _hset(key: str, field: str | bytes, value: bytes) -> Call:
    return lambda raw: raw.hset(key, field, value)


def _set(key: str, value: bytes, seconds: int) -> Call:
    return lambda raw: raw.set(key, value, ex=seconds)


def _push(key: str, value: bytes, *, is_first: bool = False) -> Call:
    return lambda raw: raw.lpush(key, value) if is_first else raw.rpush(key, value)


def _push_pair(key: str, entry: bytes) -> Call:
    """As if a chunk had been accepted that is none."""
    return lambda raw: raw.rpush(key, b"no chunk", entry)


def _flip_bit(key: str, field: str, at: int) -> Call:
    """Flip the highest bit of a byte."""

    def call(raw: Any) -> None:
        value = raw.hget(key, field)
        raw.hset(key, field, value[:at] + bytes([value[at] ^ 0x80]) + value[at + 1 :])

    return call


def _flip(key: str, field: str, *, is_number: bool) -> Call:
    """Flip one bit: of a number the third lowest, so that it stays one."""

    def call(raw: Any) -> None:
        value = raw.hget(key, field)
        if value is None:
            return
        if is_number:
            raw.hset(key, field, str(int(value) ^ 4))
        else:
            raw.hset(key, field, bytes([value[0] ^ 1]) + value[1:])

    return call


def flip_logged(key: str, at: int = 77) -> Call:
    """Flip one bit of the newest batch of the log: by default of the number of its deltas."""

    def call(raw: Any) -> None:
        entries = raw.xrange(key)
        if not entries:
            return
        batch = bytearray(entries[-1][1][b"b"])
        batch[at] ^= 1
        entries[-1][1][b"b"] = bytes(batch)
        pipe = raw.pipeline(transaction=True)
        pipe.delete(key)
        for place, fields in entries:
            pipe.xadd(key, fields, place)
        pipe.execute()

    return call
