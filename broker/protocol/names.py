"""The names of all Redis keys and channels; no other module contains one."""

from __future__ import annotations

import re
from binascii import crc_hqx
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from zlib import crc32

from broker.protocol.constants import MAX_NAME_LENGTH

SLOTS = 16384

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def is_name(name: str) -> bool:
    """Whether a text can name a namespace, a node or a table."""
    return len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name) is not None


def config_key(namespace: str) -> str:
    """Return the key of the hash with the configuration of the namespace."""
    return f"sb:{{{namespace}}}:config"


def slot_of(tag: str) -> int:
    """Slot of a hash tag: CRC-16/XMODEM modulo 16,384, as the Redis Cluster specification says."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def slot_of_key(key: bytes) -> int:
    """Slot of a whole key or channel: of its hash tag if it has one, else of all of it."""
    tag = key.partition(b"{")[2].partition(b"}")
    return crc_hqx(tag[0] if tag[0] and tag[1] else key, 0) % SLOTS


@lru_cache(maxsize=8192)
def shard_tag(namespace: str, shard: int, shards: int) -> str:
    """Hash tag of one shard, chosen so that the shards of a namespace spread evenly.

    The slots are split into `shards` equal ranges; the first of `ns:i`, `ns:i.1`, `ns:i.2` ...
    whose slot is in range i is the tag. It depends only on the three arguments.
    """
    candidates = (f"{namespace}:{shard}" + (f".{n}" if n else "") for n in count())
    return next(tag for tag in candidates if slot_of(tag) * shards // SLOTS == shard)


def shard_of(key: str, shards: int) -> int:
    """Shard that a key belongs to: CRC-32 of its UTF-8 bytes modulo `shards`.

    Of a key with a tag in braces, as `{o7}/stock`, only the tag counts, as on a Redis Cluster: keys
    with the same tag are in the same shard.
    """
    if shards <= 1:  # 0: of a producer that is not open yet
        return 0
    if "{" in key:
        tag, brace, _ = key.partition("{")[2].partition("}")
        if tag and brace:
            key = tag
    return crc32(key.encode()) % shards


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """Names of all keys and channels of one shard; they share a hash tag, so one slot.

    Channels belong to the whole server, keys to a database: so a channel's name has the number of
    the database, and the same namespace in another database is another one.

    Attributes:
        prefix: `sb:{tag}:`.
    """

    prefix: str
    meta: str
    intake: str
    queue: str
    ready: str
    log: str
    state: str
    tables: str
    lease: str
    workers: str
    dicts: str
    dead: str
    channel: str
    bulk: str

    @classmethod
    def of(cls, namespace: str, shard: int, shards: int, database: int | str = 0) -> ShardKeys:
        """Names of shard number `shard` of a namespace that has `shards` of them.

        `database` is the number of the Redis database; only the channels need it.
        """
        return cls.of_tag(shard_tag(namespace, shard, shards), database)

    @classmethod
    def of_tag(cls, tag: str, database: int | str = 0) -> ShardKeys:
        """Names with a hash tag; a pattern as the tag or the database gives patterns."""
        prefix = f"sb:{{{tag}}}:"
        return cls(
            prefix=prefix,
            meta=prefix + "meta",
            intake=prefix + "intake",
            queue=prefix + "queue",
            ready=prefix + "ready",
            log=prefix + "log",
            state=prefix + "state",
            tables=prefix + "tables",
            lease=prefix + "lease",
            workers=prefix + "workers",
            dicts=prefix + "dicts",
            dead=prefix + "dead",
            channel=f"{prefix}live:{database}",
            bulk=f"{prefix}bulk:{database}",
        )

    @property
    def idle(self) -> str:
        """Return the key of what `statebroker repair --forget-idle` notes; no other reads it."""
        return self.prefix + "idle"

    def stage(self, node: str) -> str:
        """Return the key of the list of a node's bulk chunk on its way into the queue."""
        return f"{self.prefix}stage:{node}"
