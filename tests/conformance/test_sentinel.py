"""A primary is trusted only while no sentinel contradicts it."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

import pytest
import redis

from broker import DataLostError, Inspector, Producer
from broker.backend.sentinel import ABORTED, FENCE_MAX_S, PROMOTING, SWITCHED, Sentinels
from broker.backend.stored import intake_head
from broker.backend.urls import Address
from broker.testing.clusters import SentinelDeployment, ask
from broker.testing.server import REDIS, REDIS_8, VALKEY, find_binary
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing, Serving

# Seconds that a command may be under way on a machine that is not busy.
IN_FLIGHT = 0.05


@pytest.fixture
def serving() -> Iterator[NewServing]:
    """Give a factory of workers that end with the test."""
    with ExitStack() as stack:

        def start(url: str, namespace: str) -> Serving:
            workers = Serving(url, namespace)
            stack.callback(workers.stop)
            return workers

        yield start


# All kinds take several seconds.
@pytest.fixture(params=[pytest.param(VALKEY, marks=pytest.mark.slow), REDIS, REDIS_8])
def sentinel_set(request: pytest.FixtureRequest) -> Iterator[SentinelDeployment]:
    """Start a Sentinel deployment for one test, which kills its sentinels."""
    if isinstance(reason := find_binary(request.param), str):
        pytest.skip(reason)
    with ExitStack() as stack:

        def directory() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-")))

        one = SentinelDeployment(request.param, directory)
        stack.callback(one.stop)
        one.start()
        yield one


class Fence:
    """Records which primary a producer's directory names after a promotion starts.

    Attributes:
        heard: when it heard that another server is about to be promoted (seconds since 1970).
        wrong: what it named as the primary though it had heard that it is being replaced.
    """

    def __init__(self, producer: Producer) -> None:
        self.heard: list[float] = []
        self.wrong: list[str] = []
        self._replaced: Address | None = None
        directory = producer._engine._session.connections.directory
        assert isinstance(directory, Sentinels)
        self._directory = directory
        self._announced, self._owner = directory._announced, directory.owner
        directory._announced = self.announced  # type: ignore[method-assign]
        directory.owner = self.owner  # type: ignore[method-assign]

    def announced(self, event: str, text: str) -> None:
        """Forward a sentinel's message."""
        if event == PROMOTING:
            self.heard.append(time.time())
            self._replaced = self._directory._primary
        self._announced(event, text)
        if event in (SWITCHED, *ABORTED):
            self._replaced = None

    async def owner(self, key: str | bytes | None) -> Address:
        """Forward the primary that it names."""
        found = await self._owner(key)
        if found == self._replaced and time.time() < self.heard[-1] + FENCE_MAX_S:
            self.wrong.append(f"{found} {time.time() - self.heard[-1]:.3f} s after it heard")
        return found


def test_nobody_writes_to_a_primary_that_is_being_replaced(
    sentinel_set: SentinelDeployment, namespace: str, serving: NewServing
) -> None:
    """A requested failover loses nothing, even for producers that keep nothing.

    A producer that learns of it only after the promotion may lose deltas; it counts them.
    """
    serving(sentinel_set.url, namespace)
    stop = threading.Event()
    with (
        Producer(sentinel_set.url, namespace=namespace, keep_seconds=0, linger=0) as producer,
        Inspector(sentinel_set.url, namespace=namespace) as inspector,
    ):
        fence = Fence(producer)

        def write() -> None:
            while not stop.wait(0.002):
                producer.increment("n")

        writing = threading.Thread(target=write)
        writing.start()
        try:
            for _ in range(2):
                before = producer.stats().accepted
                eventually(lambda before=before: producer.stats().accepted > before + 50, 20)
                sentinel_set.fail_over()
                before = producer.stats().accepted
                eventually(lambda before=before: producer.stats().accepted > before + 50, 20)
                sentinel_set.until_whole()
        finally:
            stop.set()
            writing.join()
        with suppress(DataLostError):
            producer.flush(20)
        stats = producer.stats()
        assert fence.wrong == []
        assert stats.accepted == stats.buffered
        eventually(
            lambda: inspector.folded()["n"] == stats.buffered - producer.stats().lost,
            20,
            lambda: str((inspector.folded(), producer.stats())),
        )
        # Each promotion is heard of once, by the sentinel that leads it.
        promoted = _promotions(sentinel_set)
        assert len(fence.heard) == len(promoted) == 2
        if all(heard + IN_FLIGHT < at for heard, at in zip(fence.heard, promoted, strict=True)):
            assert producer.stats().lost == 0


def _promotions(sentinel_set: SentinelDeployment) -> list[float]:
    """Return when sentinels told a replica to be the primary (seconds since 1970)."""
    lines = re.findall(
        r"^\d+:X (.*?) [*#] \+failover-state-wait-promotion ",
        "".join(sentinel.log for sentinel in sentinel_set.sentinels),
        re.MULTILINE,
    )
    # Logs tell local time, as time.time() is understood without a zone.
    return sorted(
        datetime.strptime(line, "%d %b %Y %H:%M:%S.%f").astimezone().timestamp() for line in lines
    )


def test_a_sentinel_that_knows_less_is_not_believed(
    sentinel_set: SentinelDeployment, namespace: str, serving: NewServing
) -> None:
    """A sentinel that missed a failover names the old primary, and is ignored."""
    serving(sentinel_set.url, namespace)
    old, (*others, away) = sentinel_set.primary, sentinel_set.sentinels
    with Producer(sentinel_set.url, namespace=namespace) as producer:
        producer.set("key", 0)
        producer.flush(20)
        away.kill()
        old.pause()
        sentinel_set.sentinels.remove(away)
        eventually(lambda: sentinel_set.primary is not old, 30, "a failover")
        producer.set("key", 1)
        producer.flush(30)
        for sentinel in others:
            sentinel.kill()
        old.resume()
        away.start()
        sentinel_set.sentinels.append(away)
        new = next(
            server
            for server in sentinel_set.servers
            if server is not old and b"master" in str(ask(server, "ROLE")).encode()
        )
        assert "master" in str(ask(old, "ROLE"))
        # Its subscriptions to the others have ended: it asks who the primary is, all the time.
        session = producer._engine._session
        directory = session.connections.directory
        asked = [0]
        ask_all = directory._answers  # type: ignore[attr-defined]

        async def counted() -> object:
            found = await ask_all()
            asked[0] += 1
            return found

        directory._answers = counted  # type: ignore[attr-defined]
        eventually(lambda: asked[0] >= 2, 30, "it asked again")
        offset = _replicated(new)
        producer.set("key", 2)
        producer.flush(20)
        assert _replicated(new) > offset
        assert ask(old, "INFO", "replication")["role"] == "master"
        assert _appends(old, namespace) < _appends(new, namespace)


def _replicated(server: object) -> int:
    return int(ask(server, "INFO", "replication")["master_repl_offset"])  # type: ignore[arg-type]


def _appends(server: object, namespace: str) -> int:
    with redis.Redis.from_url(server.url) as one:  # type: ignore[attr-defined]
        head = intake_head(one.hget(f"sb:{{{namespace}:0}}:intake", ":head"))  # type: ignore[arg-type]
    assert head is not None
    return head.accepted
