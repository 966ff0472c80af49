"""Random damage of anything that a namespace has in Redis: keys of any type, and parts of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from broker.protocol.names import ShardKeys, config_key

KINDS: Final = ("string", "list", "hash", "set", "zset", "stream")
NUMBERS: Final = (
    *(b"-1", b"0", b"1.5", b"nan", b"inf", b"1e400", b"9007199254740993", b"18446744073709551616"),
    *(b"9" * 40, b"0x10", b" 1", b""),
)
MAX_OLD: Final = 20  # values of one place that are remembered


@dataclass(slots=True)
class Stroke:
    """One damage that was done.

    Attributes:
        key: the Redis key.
        what: how it was damaged, for people.
    """

    key: str
    what: str

    @property
    def is_of_content(self) -> bool:
        """Whether it hit single fields of the full state only."""
        return self.key.endswith((":state", ":tables")) and self.what.startswith("field ")


@dataclass(slots=True)
class Past:
    """What places of the server held before: whole keys, as DUMP gives them, and fields."""

    dumps: dict[str, list[bytes]] = field(default_factory=dict)
    fields: dict[tuple[str, bytes], list[bytes]] = field(default_factory=dict)

    def note(self, raw: Any, keys: Iterable[str]) -> None:
        """Remember what the keys hold now."""
        for key in keys:
            dump = raw.dump(key)
            if dump is not None:
                _keep(self.dumps.setdefault(key, []), dump)
            if raw.type(key) == b"hash":
                for name, value in raw.hgetall(key).items():
                    _keep(self.fields.setdefault((key, name), []), value)


def _keep(values: list[bytes], value: bytes) -> None:
    if value not in values:
        values.append(value)
        del values[:-MAX_OLD]


def keys_of(namespace: str, shards: int, nodes: Iterable[str]) -> list[str]:
    """Return every key that section 3 of PROTOCOL.md names."""
    found = [config_key(namespace)]
    for number in range(shards):
        keys = ShardKeys.of(namespace, number, shards)
        found += [
            *(keys.meta, keys.intake, keys.queue, keys.ready, keys.log, keys.state, keys.tables),
            *(keys.lease, keys.workers, keys.dead),
            *(keys.stage(node) for node in nodes),
        ]
    return found


def strike(raw: Any, chance: random.Random, past: Past, keys: list[str]) -> Stroke:
    """Damage one of the keys in one way."""
    key = chance.choice(keys)
    kind = raw.type(key).decode()
    ways: list[Callable[[Any, random.Random, Past, str], str]] = [_of_type, _old_key]
    if kind != "none":
        ways.append(_delete)
    # The parts are more interesting than the whole.
    ways += 8 * _PARTS.get(kind, [])
    return Stroke(key, chance.choice(ways)(raw, chance, past, key))


def mutated(chance: random.Random, value: bytes, old: list[bytes]) -> tuple[bytes, str]:
    """Return a value in place of another, and how it was made."""
    number, at = chance.choice(NUMBERS), chance.randrange(max(1, len(value)))
    flipped = bytes([one ^ (1 << chance.randrange(8)) for one in value[at : at + 1]])
    ways = [
        (value[:at], f"cut to {at} bytes"),
        (value + chance.randbytes(chance.choice((1, 8, 1000))), "made longer"),
        (value[:at] + flipped + value[at + 1 :], f"a bit of byte {at} flipped"),
        (chance.randbytes(len(value) or 8), "random bytes of its length"),
        (number, f"{number!r}"),
        (value[at:] + value[:at], f"rotated by {at}"),
    ]
    ways += [(chance.choice(old), "as it was before")] if old else []
    return chance.choice(ways)


# -- a key as a whole -----------------------------------------------------------------------------


def _of_type(raw: Any, chance: random.Random, _past: Past, key: str) -> str:
    kind = chance.choice([one for one in KINDS if one.encode() != raw.type(key)])
    value = chance.randbytes(8)
    # At once: the fleet writes to the key too.
    pipe = raw.pipeline(transaction=True)
    pipe.delete(key)
    {
        "string": lambda: pipe.set(key, value),
        "list": lambda: pipe.rpush(key, value),
        "hash": lambda: pipe.hset(key, value, value),
        "set": lambda: pipe.sadd(key, value),
        "zset": lambda: pipe.zadd(key, {value: 1}),
        "stream": lambda: pipe.xadd(key, {value: value}),
    }[kind]()
    pipe.execute()
    return f"replaced by a {kind}"


def _old_key(raw: Any, chance: random.Random, past: Past, key: str) -> str:
    old = past.dumps.get(key)
    if not old:
        return _delete(raw, chance, past, key)
    raw.restore(key, 0, chance.choice(old), replace=True)
    return "all of it as it was before"


def _delete(raw: Any, _chance: random.Random, _past: Past, key: str) -> str:
    raw.delete(key)
    return "deleted"


# -- parts ----------------------------------------------------------------------------------------


def _field(raw: Any, chance: random.Random, past: Past, key: str) -> str:
    fields = raw.hgetall(key)
    if not fields:
        return _delete(raw, chance, past, key)
    name = chance.choice(sorted(fields))
    value, how = mutated(chance, fields[name], past.fields.get((key, name), []))
    raw.hset(key, name, value)
    return f"field {_shown(name)} {how}"


def _field_gone(raw: Any, chance: random.Random, past: Past, key: str) -> str:
    names = raw.hkeys(key)
    if not names:
        return _delete(raw, chance, past, key)
    name = chance.choice(sorted(names))
    raw.hdel(key, name)
    return f"field {_shown(name)} deleted"


def _field_new(raw: Any, chance: random.Random, _past: Past, key: str) -> str:
    name = chance.choice((b"x", b"\xff\xfe", b"a:b", b"", chance.randbytes(20)))
    raw.hset(key, name, chance.randbytes(chance.choice((0, 5, 44, 56))))
    return f"field {_shown(name)} made"


def _field_moved(raw: Any, chance: random.Random, past: Past, key: str) -> str:
    names = sorted(raw.hkeys(key))
    if len(names) < 2:
        return _delete(raw, chance, past, key)
    one, other = chance.sample(names, 2)
    raw.hset(key, one, raw.hget(key, other) or b"")
    return f"field {_shown(one)} is that of {_shown(other)}"


def _element(raw: Any, chance: random.Random, past: Past, key: str) -> str:
    elements = raw.lrange(key, 0, -1)
    if not elements:
        return _pushed(raw, chance, past, key)
    at = chance.randrange(len(elements))
    value, how = mutated(chance, elements[at], elements)
    # The fleet may have taken it meanwhile.
    raw.eval(
        "if redis.call('LLEN', KEYS[1]) > tonumber(ARGV[1]) then "
        "redis.call('LSET', KEYS[1], ARGV[1], ARGV[2]) end",
        *(1, key, at, value),
    )
    return f"element {at} {how}"


def _pushed(raw: Any, chance: random.Random, _past: Past, key: str) -> str:
    value = chance.choice((b"", b"x", b"\1" + bytes(21) + b"n", chance.randbytes(100)))
    chance.choice((raw.lpush, raw.rpush))(key, value)
    return "an element pushed"


def _element_gone(raw: Any, chance: random.Random, _past: Past, key: str) -> str:
    chance.choice((raw.lpop, raw.rpop))(key)
    return "an element taken"


def _entry(raw: Any, chance: random.Random, past: Past, key: str) -> str:
    entries = raw.xrange(key)
    if not entries:
        return _delete(raw, chance, past, key)
    at = chance.randrange(len(entries))
    fields = entries[at][1]
    name = chance.choice(sorted(fields))
    fields[name], how = mutated(chance, fields[name], [])
    pipe = raw.pipeline(transaction=True)
    pipe.delete(key)
    for place, content in entries:
        pipe.xadd(key, content, place)
    pipe.execute()
    return f"field {_shown(name)} of entry {at - len(entries)} {how}"


def _entry_gone(raw: Any, chance: random.Random, past: Past, key: str) -> str:
    entries = raw.xrange(key)
    if not entries:
        return _delete(raw, chance, past, key)
    at = chance.randrange(len(entries))
    raw.xdel(key, entries[at][0])
    return f"entry {at - len(entries)} deleted"


def _entry_new(raw: Any, chance: random.Random, _past: Past, key: str) -> str:
    last = raw.xinfo_stream(key)["last-generated-id"]
    number, place = map(int, last.split(b"-"))
    following = min(number + chance.choice((0, 1, 2, 1 << 40)), (1 << 64) - 1)
    place = place + 1 if following == number else 0
    raw.xadd(key, {b"b": chance.randbytes(50)}, f"{following}-{place}")
    return "an entry added"


def _text(raw: Any, chance: random.Random, _past: Past, key: str) -> str:
    value, how = mutated(chance, raw.get(key) or b"", [])
    raw.set(key, value, px=chance.choice((2000, None)))
    return how


_PARTS: Final[dict[str, list[Callable[[Any, random.Random, Past, str], str]]]] = {
    "hash": [_field, _field, _field, _field_gone, _field_new, _field_moved],
    "list": [_element, _pushed, _element_gone],
    "stream": [_entry, _entry, _entry_gone, _entry_new],
    "string": [_text],
}


def _shown(name: bytes) -> str:
    return ascii(name.decode(errors="backslashreplace"))[:60]
