"""Ours, for any shape: `set` for each update; the other side reads the replica, or every change."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from broker import Producer, Replica
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.shape_link import finish, is_following
from scripts.benchmarks.shapes import Updates

# More than any run writes: this reader must not miss one.
CHANGES_LIMIT = 1_000_000_000
END = "end"


def write(config: RoleConfig, link: Link) -> None:
    """Set key by key; done when Redis has accepted all."""
    updates = Updates.of(config)
    compress = config.details.get("compress")
    with Producer(config.redis, namespace=NAMESPACE, conflate=False, compress=compress) as producer:
        link.ready()
        began = link.wait_for_go()
        put = producer.set
        for page in updates.pages(config):
            for key, value in page:
                put(key, value)
        if is_following(config):
            # Tells the reader of changes that nothing follows.
            put(END, None)
        token = producer.flush()
        link.wrote(began, str(token), written=updates.written)


def read(config: RoleConfig, link: Link) -> None:
    """Be live before the first update; end with the last one, every value read."""
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        before = replica.stats().bytes_received
        if is_following(config):
            state, received = _followed(replica, link)
        else:
            link.ready()
            replica.wait_for(link.note(), TIMEOUT_S)
            state = dict(replica.items())
            # A replica that loads a full state in between gets fewer; see what was published.
            received = replica.stats().deltas_applied
        after = replica.stats().bytes_received
        finish(
            link,
            state,
            lambda: _joined(config),
            received=received,
            wire_bytes=lambda: after - before,
        )


def _followed(replica: Replica, link: Link) -> tuple[dict[str, Any], int]:
    """Return the state that all changes result in, and their number."""
    state: dict[str, Any] = {}
    received = 0
    with closing(replica.changes(limit=CHANGES_LIMIT, overflow="raise")) as changes:
        link.ready()
        for change in changes:
            key = change.key
            if key == END:
                break
            state[key] = change.value
            received += 1
    return state, received


def _joined(config: RoleConfig) -> dict[str, Any]:
    with Replica(config.redis, namespace=NAMESPACE) as late:
        late.wait_live(TIMEOUT_S)
        state = dict(late.items())
    state.pop(END, None)
    return state
