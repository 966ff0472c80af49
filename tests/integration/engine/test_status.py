"""The status of a replica is exact when read, and its changes have reasons."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from queue import SimpleQueue

import pytest
import redis
from redis.asyncio.retry import Retry

from broker import ConfigError, Health, Producer, Replica, Status, StatusChange
from broker.aio import Replica as AioReplica
from broker.protocol.codec import encode_packet
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Heartbeat
from broker.testing import FaultProxy
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.integration.manual_flush import ManualFlush
from tests.integration.running_workers import NewServing

BOUND = 0.5
# Most that a loaded machine may need to run a timer.
LATE = 0.5

Step = tuple[str, str, str]


def steps_until_live(statuses: Iterator[StatusChange]) -> list[Step]:
    """Return the next changes up to `live`; each begins where the one before ended."""
    changes: list[StatusChange] = []
    while not changes or changes[-1].after is not Status.LIVE:
        changes.append(next(statuses))
        assert changes[-1].at <= time.time()
    assert all(one.after is two.before for one, two in itertools.pairwise(changes))
    return [(one.before, one.after, one.reason) for one in changes]


def begin(replica: Replica) -> Iterator[StatusChange]:
    """Return the changes of a live replica from now on."""
    replica.wait_live(10)
    statuses = replica.statuses()
    first = next(statuses)
    assert (first.before, first.after) == (Status.LIVE, Status.LIVE)
    return statuses


# -- exact when read ------------------------------------------------------------------------------


def test_beyond_the_bound_it_is_not_live_though_nothing_else_runs(
    server: Server, namespace: str
) -> None:
    """While the event loop is blocked, status, wait_live and health are still exact."""

    async def scenario(flusher: ManualFlush) -> None:
        async with AioReplica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
            await asyncio.to_thread(flusher.beat)
            await replica.wait_live(10)
            statuses = replica.statuses()
            # No await until the bound is over: the replica's own tasks cannot run.
            while replica.lag <= BOUND:
                assert replica.health.ok or replica.lag > BOUND
            assert replica.status is Status.STALE
            assert "because of silence" in replica.health.reasons[0]
            # It looks before anything else of the loop can run.
            with pytest.raises(TimeoutError, match=r"is not live .* it is stale"):
                await replica.wait_live(0)
            reported = [await anext(statuses) for _ in range(2)]
            assert [(one.after, one.reason) for one in reported] == [
                (Status.LIVE, "caught_up"),
                (Status.STALE, "silence"),
            ]

    with ManualFlush(server.url, namespace) as flusher:
        flusher.beat()
        asyncio.run(scenario(flusher))


def test_other_threads_read_an_exact_status_too(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """While the replica's thread is blocked, other threads see it stale beyond the bound."""
    serving(server.url, namespace)
    go_on = threading.Event()
    with Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
        statuses = begin(replica)
        replica._thread.loop.call_soon_threadsafe(go_on.wait, 30)
        try:
            while (lag := replica.lag) <= BOUND:
                assert replica.status is Status.LIVE or replica.lag > BOUND, lag
            assert replica.status is Status.STALE
            assert not replica.health.ok
        finally:
            go_on.set()
        # What was sent meanwhile is read; what readers saw is reported first.
        assert steps_until_live(statuses)[0] == ("live", "stale", "silence")


def test_silence_is_reported_within_milliseconds_of_the_bound(
    server: Server, namespace: str, raw: redis.Redis
) -> None:
    """Each shard has its own deadline, which a late packet may shorten."""
    bound, left = 40.0, 0.2
    over: list[float] = []
    with (
        ManualFlush(server.url, namespace) as flusher,
        Replica(server.url, namespace=namespace, staleness_bound=bound) as replica,
    ):
        flusher.beat()
        statuses = begin(replica)
        mine = replica.position
        for _ in range(5):
            seconds, microseconds = raw.time()  # type: ignore[misc]
            sent = round((seconds + microseconds / 1e6 - bound + left) * 1000)
            old = Heartbeat(0, mine.epoch, mine.offset, mine.batch_id, NO_ID, sent, 0)
            flusher.publish(encode_packet(old))
            change = next(statuses)
            over.append(replica.lag - bound)
            assert (change.after, change.reason) == (Status.STALE, "silence")
            flusher.beat()
            assert steps_until_live(statuses) == [("stale", "live", "current")]
    assert min(over) > 0
    # The others may have met a busy machine.
    assert min(over) < 0.02, over
    assert max(over) < LATE, over


# -- what happens to a link -----------------------------------------------------------------------


def test_a_half_open_link(server: Server, namespace: str, serving: NewServing) -> None:
    """A silent open connection makes the replica stale; it is live once data flows."""
    serving(server.url, namespace)
    with (
        FaultProxy(server.url) as proxy,
        Replica(proxy.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        statuses = begin(replica)
        proxy.faults.stall()
        change = next(statuses)
        assert (change.before, change.after, change.reason, change.shard) == (
            *(Status.LIVE, Status.STALE),
            *("silence", 0),
        )
        assert replica.lag < BOUND + LATE
        assert replica.status is Status.STALE
        health = replica.health
        assert not health.ok
        assert "stale since 20" in health.reasons[0]
        assert "because of silence of shard 0" in health.reasons[0]
        assert "statebroker status" in health.reasons[0]
        (reason,) = replica.stats().health.reasons
        assert "because of silence" in reason
        assert not replica.stats().health.ok
        proxy.heal()
        steps = steps_until_live(statuses)
        assert steps[0] == ("stale", "catching_up", "subscribed")
        assert steps[-1][2] in ("caught_up", "current")
        assert replica.health == Health(ok=True)
        assert replica.stats().as_dict()["health"] == {"ok": True, "reasons": ()}


def test_a_subscriber_that_is_cut_off_for_being_slow(
    kind: str, own_server: OwnServer, namespace: str, serving: NewServing
) -> None:
    """A reader that the server disconnects for slowness reports it and catches up."""
    limits = ("--client-output-buffer-limit", "pubsub 64kb 0 0")
    server = own_server(*limits, kind=kind)
    serving(server.url, namespace)
    go_on = threading.Event()
    with (
        redis.Redis.from_url(server.url, protocol=2) as raw,
        Producer(server.url, namespace=namespace) as producer,
        ExitStack() as stack,
    ):

        def subscribers() -> set[str]:
            return {client["id"] for client in raw.client_list(_type="pubsub")}

        (canary,) = eventually(subscribers)
        replica = stack.enter_context(Replica(server.url, namespace=namespace, staleness_bound=10))
        statuses = begin(replica)
        (mine,) = subscribers() - {canary}

        def is_cut() -> bool:
            producer.set("key", "x" * 100_000)
            producer.flush(10)
            return mine not in subscribers()

        replica._thread.loop.call_soon_threadsafe(go_on.wait, 30)
        try:
            eventually(is_cut)
        finally:
            go_on.set()
        steps = steps_until_live(statuses)
        assert steps == [
            ("live", "stale", "lost"),
            ("stale", "catching_up", "subscribed"),
            ("catching_up", "live", "caught_up"),
        ]
        producer.set("after", 1)
        replica.wait_for(producer.flush(10), 10)
        assert replica["after"] == 1


def test_a_connection_that_the_server_kills(
    kind: str, own_server: OwnServer, namespace: str, serving: NewServing
) -> None:
    """The loss is reported at once, and missed packets are read."""
    server = own_server(kind=kind)
    serving(server.url, namespace)
    with (
        redis.Redis.from_url(server.url, protocol=2) as raw,
        Replica(server.url, namespace=namespace, staleness_bound=60) as replica,
    ):
        statuses = begin(replica)
        # The worker's own subscription dies, too.
        assert raw.client_kill_filter(_type="pubsub") > 0
        assert steps_until_live(statuses) == [
            ("live", "stale", "lost"),
            ("stale", "catching_up", "subscribed"),
            ("catching_up", "live", "caught_up"),
        ]


def test_a_subscription_that_is_renewed_silently(
    kind: str,
    own_server: OwnServer,
    namespace: str,
    serving: NewServing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A silent resubscription of the client library is noticed, and missed packets are read."""
    # What redis-py does by default; our client has it disabled.
    monkeypatch.setattr(
        "broker.backend.connections.Retry", lambda backoff, _retries: Retry(backoff, 3)
    )
    server = own_server(kind=kind)
    serving(server.url, namespace)
    with (
        redis.Redis.from_url(server.url, protocol=2) as raw,
        Replica(server.url, namespace=namespace, staleness_bound=60) as replica,
    ):
        statuses = begin(replica)
        # The worker's own subscription dies, too.
        assert raw.client_kill_filter(_type="pubsub") > 0
        assert steps_until_live(statuses) == [
            ("live", "catching_up", "subscribed"),
            ("catching_up", "live", "caught_up"),
        ]
        assert replica.stats().reconnects == 0


# -- following ------------------------------------------------------------------------------------


def test_statuses_from_the_beginning_to_the_end(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """All changes from `connecting` to `closed` are reported; then the iteration ends."""
    replica = Replica(server.url, namespace=namespace)
    statuses = replica.statuses()
    serving(server.url, namespace)
    replica.wait_live(10)
    replica.close()
    reported = [(one.before, one.after, one.reason) for one in statuses]
    assert reported == [
        ("connecting", "connecting", "open"),
        ("connecting", "loading", "subscribed"),
        ("loading", "catching_up", "loaded"),
        ("catching_up", "live", "caught_up"),
        ("live", "closed", "close"),
    ]
    assert replica.stats().status_changes == 4
    assert [(one.before, one.after) for one in replica.statuses()] == [("closed", "closed")]
    assert "because of close" in replica.health.reasons[0]


def test_closing_statuses_ends_a_reader_that_waits(server: Server, namespace: str) -> None:
    """Closing the iteration from another thread ends it; the replica continues."""
    with Replica(server.url, namespace=namespace) as replica:
        statuses = replica.statuses()
        reported: SimpleQueue[Status | None] = SimpleQueue()

        def read() -> None:
            for one in statuses:
                reported.put(one.after)
            reported.put(None)

        reader = threading.Thread(target=read)
        reader.start()
        assert reported.get(timeout=10) is Status.CONNECTING
        statuses.close()
        assert reported.get(timeout=10) is None
        reader.join()
        assert replica.status is Status.CONNECTING
        last = replica.statuses()
    # Without any shard that could be closed.
    assert [(one.after, one.reason) for one in last] == [
        (Status.CONNECTING, "open"),
        (Status.CLOSED, "close"),
    ]


def test_statuses_of_the_asyncio_replica(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """`async for` yields the same changes and the same end."""
    serving(server.url, namespace)

    async def scenario() -> None:
        async with AioReplica(server.url, namespace=namespace) as replica:
            await replica.wait_live(10)
            statuses, other = replica.statuses(), replica.statuses()
            assert (await anext(other)).after is Status.LIVE
            waiting = asyncio.create_task(anext(other, None))
            other.close()
            async with asyncio.timeout(10):
                assert await waiting is None
            assert replica.health == Health(ok=True)
        async with asyncio.timeout(10):
            reported = [(one.before, one.after, one.reason) async for one in statuses]
            assert reported == [("live", "live", "caught_up"), ("live", "closed", "close")]
            assert [one.after async for one in replica.statuses()] == [Status.CLOSED]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_aio", [False, True])
def test_a_callback_that_blocks_does_not_make_the_replica_stale(
    server: Server, namespace: str, serving: NewServing, *, is_aio: bool
) -> None:
    """While a callback blocks, the replica stays live; then all changes arrive in order."""
    serving(server.url, namespace)
    bound = 1.0
    go_on = threading.Event()
    called: list[StatusChange] = []

    def block(change: StatusChange) -> None:
        called.append(change)
        go_on.wait(30)

    def lives_long(replica: Replica | AioReplica, since: float) -> bool:
        assert replica.status is Status.LIVE
        return time.monotonic() > since + 2 * bound

    def check_in_thread() -> None:
        with Replica(
            server.url, namespace=namespace, staleness_bound=bound, on_status=block
        ) as replica:
            replica.wait_live(10)
            eventually(lambda: called)
            since = time.monotonic()
            eventually(lambda: lives_long(replica, since))

    async def check_in_loop() -> None:
        async with AioReplica(
            server.url, namespace=namespace, staleness_bound=bound, on_status=block
        ) as replica:
            await replica.wait_live(10)
            since = time.monotonic()
            await asyncio.to_thread(eventually, lambda: called)
            await asyncio.to_thread(eventually, lambda: lives_long(replica, since))

    try:
        if is_aio:
            asyncio.run(check_in_loop())
        else:
            check_in_thread()
        # Closing did not wait for it either.
        assert len(called) == 1
    finally:
        go_on.set()
    eventually(lambda: called[-1].after is Status.CLOSED)
    assert [(one.before, one.after, one.reason) for one in called] == [
        ("connecting", "loading", "subscribed"),
        ("loading", "catching_up", "loaded"),
        ("catching_up", "live", "caught_up"),
        ("live", "closed", "close"),
    ]


def test_a_callback_may_use_its_replica(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A callback may read, wait and close its replica without a deadlock."""
    serving(server.url, namespace)
    seen: SimpleQueue[str] = SimpleQueue()
    made = threading.Event()

    def use(change: StatusChange) -> None:
        assert made.wait(10)
        if change.after is Status.LIVE:
            replica.wait_live(10)
            seen.put(f"{len(replica.snapshot()[0])} {replica.health.ok}")
            replica.close()
        elif change.after is Status.CLOSED:
            seen.put("closed")

    replica = Replica(server.url, namespace=namespace, on_status=use)
    made.set()
    assert seen.get(timeout=10) == "0 True"
    assert seen.get(timeout=10) == "closed"
    assert replica.status is Status.CLOSED


async def coroutine(change: StatusChange) -> None:
    """Do nothing, asynchronously."""


@pytest.mark.parametrize("wrong", [coroutine, "print"])
def test_what_cannot_be_called_is_refused(wrong: object) -> None:
    """A wrong callback is refused before connecting, with what to use instead."""
    with pytest.raises(ConfigError, match=r"on_status=.*allowed: a plain function; .*statuses\(\)"):
        Replica("redis://127.0.0.1:1", on_status=wrong)  # type: ignore[arg-type]


def test_a_slow_reader_of_changes_is_no_illness_of_the_replica(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """An overflowing or conflating queue of changes does not affect health."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=10) as replica,
    ):
        replica.wait_live(10)
        readers = replica.changes(limit=1), replica.changes(limit=1, overflow="raise")
        for number in range(10):
            producer.set("key", number)
        replica.wait_for(producer.flush(10), 10)
        assert replica.stats().changes_conflated
        assert replica.health == Health(ok=True)
        for reader in readers:
            reader.close()
