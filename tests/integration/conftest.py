"""Fixtures of the integration tests: workers, and a plain Redis client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from broker import Inspector, Producer
from broker.protocol.names import ShardKeys
from broker.testing.server import KINDS, Server
from tests.integration.running_workers import NewServing, Serving
from tests.integration.watched_shard import WatchedShard


@pytest.fixture
def serving() -> Iterator[NewServing]:
    """Give a factory of running workers that end with the test: see `Serving` for its arguments."""
    running: list[Serving] = []

    def start(url: str, namespace: str, **settings: Any) -> Serving:
        running.append(Serving(url, namespace, **settings))
        return running[-1]

    yield start
    for one in reversed(running):
        one.stop()


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """Give a plain client of the shared server."""
    with redis.Redis.from_url(server.url, protocol=2) as client:
        yield client


@pytest.fixture
def keys(namespace: str) -> ShardKeys:
    """Give the names of the only shard of this test's namespace."""
    return ShardKeys.of(namespace, 0, 1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Give the name of each kind of server, for tests that need one of their own."""
    return str(request.param)


@pytest.fixture
def watched_shard(server: Server, namespace: str, serving: NewServing) -> Iterator[WatchedShard]:
    """Give a namespace with a flush worker and no scheduler."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        yield WatchedShard(server.url, namespace, producer, inspector)
