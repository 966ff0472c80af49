"""What workers count of themselves is what Redis counts of them all."""

from __future__ import annotations

from broker import Inspector, Producer
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing


def test_the_numbers_of_all_workers_add_up_to_those_of_the_namespace(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Two flush workers and a scheduler: per shard and in sum, nothing is counted twice or not."""
    workers = serving(server.url, namespace, shards=2, flushers=2, interval=0.1)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        for number in range(400):
            producer.set(f"k{number}", number)
            if number % 50 == 0:
                producer.flush(10)
        producer.flush(10)

        def is_folded() -> bool:
            return all(
                not shard.pending_deltas and shard.snapshot_offset == shard.offset
                for shard in inspector.status().shards
            )

        eventually(is_folded)
        workers.stop()
        shards = inspector.status().shards

    reported = [flusher.stats() for flusher in workers.flushers]
    for shard in shards:
        mine = [one.shards[shard.shard] for one in reported]
        assert [one.shard for one in mine] == [shard.shard] * 2
        assert sum(one.deltas for one in mine) == shard.published > 0
        assert sum(one.batches for one in mine) == shard.batches
        assert sum(one.by_count for one in mine) == shard.by_count
        assert sum(one.by_age for one in mine) == shard.by_age
        assert sum(one.bytes for one in mine) == shard.bytes_published
    for one, flusher in zip(reported, workers.flushers, strict=True):
        assert (one.worker, one.reason) == (flusher.name, "")
        assert one.batches == one.by_count + one.by_age == sum(s.batches for s in one.shards)
        assert one.deltas == sum(s.deltas for s in one.shards)
        assert one.bytes == sum(s.bytes for s in one.shards)

    assert workers.scheduler is not None
    written = workers.scheduler.stats()
    assert (written.worker, written.reason) == (workers.scheduler.name, "")
    assert (written.errors, written.jobs_failed) == (0, 0)
    assert all(one.snapshots for one in written.shards)
    assert written.snapshots == sum(one.snapshots for one in written.shards)
    assert [one.sets for one in written.shards] == [shard.state_keys for shard in shards]
    assert (written.sets, written.deletes) == (400, 0)
