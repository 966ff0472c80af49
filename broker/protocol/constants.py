"""The numbers of the wire format and the Redis layout; PROTOCOL.md explains them."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 3

# The feature words of this version. `protocol/features.py` says which are built.
FEATURES: Final = ("compress", "conditions", "leases", "revisions", "ttl")

# Kinds of packets on the channel of a shard (second element of every packet).
KIND_BATCH: Final = 1
KIND_HEARTBEAT: Final = 2
KIND_NOTICE: Final = 3

# Types of a table's keys (text or u64) and values (float64 or int64).
TABLE_KINDS: Final = ("str-f64", "str-i64", "u64-f64", "u64-i64")
RECORD_BYTES: Final = 24  # key, value, timestamp: 8 bytes each
BLOCK_SLOTS: Final = 512  # of a table, in one field of the full state
MAX_TABLES: Final = 1024  # of a shard; each costs its readers some 7 KB, however few keys it has
# Deltas on tables in one chunk. A range of ids names as many as it likes in a few bytes.
MAX_TABLE_DELTAS: Final = 4 << 20

# What made a batch due.
TRIGGER_COUNT: Final = 1
TRIGGER_AGE: Final = 2
TRIGGER_TIME: Final = 3  # reserved: a reader of today refuses it

EPOCH_BYTES: Final = 8
BATCH_ID_BYTES: Final = 8
NO_ID: Final = bytes(BATCH_ID_BYTES)

MAX_KEY_BYTES: Final = 1024
MAX_VALUE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_CHUNK_BYTES: Final = 4 << 20
# A chunk of at least this size is published by itself, and its batch holds a stand-in: its first
# bytes (the face) and its size. So the Lua script need not join or copy it.
BULK_BYTES: Final = 64 << 10
FACE_BYTES: Final = 96
MAX_SHARDS: Final = 4096
MAX_NAME_LENGTH: Final = 64

# Of compressed chunks: numbers of dictionaries are those that zstd leaves to its users.
FIRST_DICTIONARY: Final = 1 << 15
LAST_DICTIONARY: Final = (1 << 31) - 1
MAX_DICTIONARY_BYTES: Final = 128 << 10

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 64) - 1

# The oldest servers with all features that we use (sharded pub/sub, `#!lua` flags).
MIN_REDIS: Final = (7, 0)

# Before the content of a field that has one: check sum u32, offset u64.
CHECK_BYTES: Final = 4
FIELD_HEAD_BYTES: Final = 12
