"""The keys of the writers: few, so that each changes often."""

from __future__ import annotations

import os
from functools import cache
from itertools import count

from broker.protocol.names import shard_of

SHARDS = int(os.environ.get("STATEBROKER_SHARDS", "2"))
OWN_KEYS = 60
SHARED_KEYS = 80
GROUPS = 12
MEMBERS = 4


@cache
def group_keys(group: int) -> tuple[str, ...]:
    """Return the keys of a group, all in one shard: they must change together."""
    shard = group % SHARDS
    names = (f"group/{group}/{number}" for number in count())
    keys: list[str] = []
    for name in names:
        if shard_of(name, SHARDS) == shard:
            keys.append(name)
        if len(keys) == MEMBERS:
            break
    return tuple(keys)
