"""Under faults every deployment keeps its promises: each delta counts exactly once.

Every test accounts for each increment: what a replica holds, and what a producer was told is lost,
is what was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import pytest

from broker import BackendError, DataLostError, Inspector, Producer, Replica, Status
from broker.protocol.names import ShardKeys, shard_of, slot_of_key
from broker.testing.waiting import eventually
from tests.conformance.deployments import SHARDS, Clustered, Deployment

T = TypeVar("T")

SETTLE = 30.0
PACE = 0.002
# A key in each shard.
KEYS = [
    next(key for n in range(1000) if shard_of(key := f"c{n}", SHARDS) == shard)
    for shard in range(SHARDS)
]


class Writers:
    """Producers that continuously increment one key per shard, and set one by round.

    Attributes:
        rounds: how many each has made.
    """

    def __init__(self, url: str, namespace: str, count: int = 2) -> None:
        self.rounds = [0] * count
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._write, args=(url, namespace, number))
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, url: str, namespace: str, number: int) -> None:
        try:
            with Producer(url, namespace=namespace, node=f"w{number}", shards=SHARDS) as producer:
                while not self._stop.wait(PACE):
                    for key in KEYS:
                        producer.increment(key)
                        producer.set(f"{key}/{number}", self.rounds[number])
                    self.rounds[number] += 1
                producer.flush(SETTLE)
                stats = producer.stats()
                assert stats.accepted == stats.buffered == self.rounds[number] * SHARDS * 2
                assert stats.lost == 0
        except BaseException as error:
            self._errors.append(error)
            raise

    def go_on(self, rounds: int = 20) -> None:
        """Return once each has written some more."""
        before = list(self.rounds)
        eventually(
            lambda: (
                self._errors
                or all(now >= then + rounds for now, then in zip(self.rounds, before, strict=True))
            ),
            SETTLE,
        )

    def end(self) -> None:
        """Stop once everything is accepted."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors


@contextmanager
def writing(deployment: Deployment, namespace: str) -> Iterator[tuple[Writers, Replica]]:
    """Run writers and a live replica; at the end check that each delta counts once."""
    ordered = Ordered()
    with (
        deployment.serve(namespace),
        Replica(deployment.way("subscriber"), namespace=namespace, staleness_bound=1.0) as replica,
    ):
        writers = Writers(deployment.way("producer"), namespace)
        try:
            writers.go_on()
            replica.wait_live(SETTLE)
            loads = replica.stats().loads
            watching = threading.Thread(target=ordered.watch, args=(replica,))
            watching.start()
            yield writers, replica
            writers.go_on()
        finally:
            writers.end()
        expected = {key: sum(writers.rounds) for key in KEYS}
        for number, rounds in enumerate(writers.rounds):
            expected |= {f"{key}/{number}": rounds - 1 for key in KEYS}
        try:
            eventually(lambda: replica.snapshot()[0] == expected, SETTLE)
        except AssertionError:
            assert replica.snapshot()[0] == expected
        replica.wait_live(SETTLE)
        has_loaded = replica.stats().loads > loads
        verification = answered(replica.verify)
        assert (verification.is_equal, verification.keys) == (True, len(expected))
        with Inspector(deployment.way("subscriber"), namespace=namespace) as inspector:
            assert answered(inspector.folded) == expected
    watching.join()
    # A full state shows the outcome only, not what led to it.
    assert has_loaded or ordered.wrong == []
    assert ordered.seen > 0


class Ordered:
    """Checks that the values of one writer arrive in order."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.seen = 0

    def watch(self, replica: Replica) -> None:
        """Look at every change until the replica is closed."""
        latest: dict[str, int] = {}
        for change in replica.changes():
            if "/" in change.key and change.operation == "set":
                self.seen += 1
                if change.value != latest.get(change.key, change.value - 1) + 1:
                    self.wrong.append(f"{change.key}: {latest[change.key]}, then {change.value}")
                latest[change.key] = change.value


def test_subscribers_that_are_cut_off_catch_up(deployment: Deployment, namespace: str) -> None:
    """A broken subscription recovers within moments, and the replica reports it."""
    with writing(deployment, namespace) as (writers, replica):
        for _ in range(3):
            before = replica.stats().reconnects
            assert deployment.cut_subscribers() > 0
            eventually(lambda before=before: replica.stats().reconnects > before, SETTLE)
            writers.go_on()
            replica.wait_live(SETTLE)


def test_a_server_replaced_in_order_loses_nothing(deployment: Deployment, namespace: str) -> None:
    """A restart or a requested failover loses nothing."""
    with writing(deployment, namespace) as (writers, replica):
        deployment.replace_primary(namespace)
        writers.go_on()
        replica.wait_live(SETTLE)


def test_a_killed_server_loses_nothing_that_producers_keep(
    deployment: Deployment, namespace: str
) -> None:
    """Deltas that a new primary lacks are sent again, once."""
    with writing(deployment, namespace) as (writers, replica):
        deployment.kill_primary(namespace)
        writers.go_on()
        replica.wait_live(SETTLE)


def test_what_the_server_forgot_is_sent_again(deployment: Deployment, namespace: str) -> None:
    """Deltas that were accepted, published, read and then lost are sent again, once."""
    with (
        deployment.serve(namespace),
        Producer(deployment.way("producer"), namespace=namespace) as producer,
        Replica(deployment.way("subscriber"), namespace=namespace, staleness_bound=1.0) as replica,
    ):
        replica.wait_for(_counted(producer, 10), SETTLE)
        with deployment.forgetting(namespace):
            replica.wait_for(_counted(producer, 5), SETTLE)
        replica.wait_for(_counted(producer, 1), SETTLE)
        eventually(lambda: replica.get(KEYS[0]) == 16, SETTLE, lambda: str(producer.stats()))
        assert [replica[key] for key in KEYS] == [16] * SHARDS
        assert producer.stats().resent > 0
        assert producer.stats().lost == 0
        eventually(lambda: answered(replica.verify).is_equal, SETTLE)


def test_what_nobody_kept_is_reported_as_lost_to_the_number(
    deployment: Deployment, namespace: str
) -> None:
    """A producer that keeps nothing reports exactly how many deltas its server lost."""
    with (
        deployment.serve(namespace),
        Producer(deployment.way("producer"), namespace=namespace, keep_seconds=0) as producer,
        Replica(deployment.way("subscriber"), namespace=namespace, staleness_bound=1.0) as replica,
    ):
        replica.wait_for(_counted(producer, 10), SETTLE)
        forgotten = deployment.beside_first(namespace)
        with deployment.forgetting(namespace):
            # All but the last chunk of each shard is dropped at once.
            for _ in range(5):
                _counted(producer, 1)

        def is_told() -> bool:
            # Each shard notices by itself: until the last has, there is less to be told.
            shown = [replica.get(key, 0) for key in KEYS]
            is_back = all(shown[shard] < 15 for shard in forgotten)
            return is_back and sum(shown) == 15 * SHARDS - producer.stats().lost

        eventually(is_told, SETTLE, lambda: str((dict(replica.items()), producer.stats())))
        with pytest.raises(DataLostError) as reported:
            producer.flush(SETTLE)
        assert reported.value.lost == producer.stats().lost
        assert [replica[KEYS[shard]] for shard in forgotten] == [10] * len(forgotten)


def answered(ask: Callable[[], T]) -> T:
    """Return an answer after retries: on a busy machine servers may fail over unasked."""
    found: list[T] = []

    def is_answered() -> bool:
        with suppress(BackendError):
            found.append(ask())
        return bool(found)

    eventually(is_answered, SETTLE, "an answer")
    return found[0]


def _counted(producer: Producer, times: int) -> str:
    for _ in range(times):
        for key in KEYS:
            producer.increment(key)
    return str(producer.flush(SETTLE))


# -- slots ----------------------------------------------------------------------------------------


def test_slots_may_move_while_writing_goes_on(with_slots: Clustered, namespace: str) -> None:
    """Moving every shard to another node and back loses nothing and breaks no subscription."""
    cluster = with_slots.cluster
    primaries = [cluster.owner(shard * 16384 // 3) for shard in range(3)]
    with writing(with_slots, namespace) as (writers, replica):
        for turn in (1, 2):
            for slot in _slots(namespace):
                at = primaries.index(cluster.owner(slot))
                cluster.move_slot(slot, primaries[(at + turn) % 3])
                writers.go_on(5)
        before = replica.stats().reconnects
        writers.go_on()
        eventually(lambda: replica.status is Status.LIVE, SETTLE)
        assert replica.health.ok
        assert replica.stats().reconnects == before


@pytest.mark.slow
def test_a_node_may_join_and_take_over_shards(with_slots: Clustered, namespace: str) -> None:
    """Clients discover a node that joined after they started."""
    cluster = with_slots.cluster
    with writing(with_slots, namespace) as (writers, replica):
        node = cluster.add_node()
        old = [cluster.owner(slot) for slot in _slots(namespace)]
        for slot in _slots(namespace):
            cluster.move_slot(slot, node)
        writers.go_on()
        replica.wait_live(SETTLE)
        for slot, owner in zip(_slots(namespace), old, strict=True):
            cluster.move_slot(slot, owner)
        cluster.remove_node(node)


def test_shards_of_other_nodes_stay_live(with_slots: Clustered, namespace: str) -> None:
    """While one node is away, shards of the others stay live."""
    cluster = with_slots.cluster
    slots = _slots(namespace)
    with (
        with_slots.serve(namespace),
        Producer(with_slots.way("producer"), namespace=namespace) as producer,
        Replica(with_slots.way("subscriber"), namespace=namespace, staleness_bound=0.6) as replica,
    ):
        producer.set_many(dict.fromkeys(KEYS, 0))
        replica.wait_for(producer.flush(SETTLE), SETTLE)
        replica.wait_live(SETTLE)
        away = cluster.owner(slots[0])
        others = [
            key for key, slot in zip(KEYS, slots, strict=True) if _is_not(away, slot, cluster)
        ]
        assert others
        replica_node = cluster.replica_of(away)
        replica_node.kill()
        away.kill()
        eventually(lambda: replica.status is Status.STALE, SETTLE)
        for number in range(1, 20):
            for key in others:
                producer.set(key, number)
            eventually(lambda number=number: all(replica[key] == number for key in others), SETTLE)
            assert replica.status is Status.STALE
        away.start()
        replica_node.start()
        replica.wait_live(SETTLE)


def _is_not(node: object, slot: int, cluster: object) -> bool:
    return cluster.owner(slot) is not node  # type: ignore[attr-defined]


def _slots(namespace: str) -> list[int]:
    return [
        slot_of_key(ShardKeys.of(namespace, shard, SHARDS).meta.encode()) for shard in range(SHARDS)
    ]
