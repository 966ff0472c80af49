"""The checks of `statebroker status --check`, role by role."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from broker.backend.damage import Damage
from broker.config import default_node
from broker.stats import ShardStats, WorkerStatus
from workers.cli.checks import Joined, faults, host_of, this_host

LIVE = Joined("live")


def worker(role: str, health: str = "green", reason: str = "", name: str = "") -> WorkerStatus:
    """A worker as `Inspector.status` reports it."""
    return WorkerStatus(
        worker=name or f"{role}-1", role=role, seen_ms=5, health=health, reason=reason
    )


def shard(**numbers: Any) -> ShardStats:
    """A shard as `Inspector.status` reports it: nothing but these numbers."""
    texts = dict.fromkeys(("epoch", "batch_id", "away"), "")
    nothing = dict.fromkeys(("pending_ms", "lease", "slot", "held_by"))
    return ShardStats(
        **{one.name: 0 for one in fields(ShardStats)} | texts | nothing | numbers  # type: ignore[arg-type]
    )


BOTH = (worker("flush"), worker("schedule"))


def test_the_check_names_every_fault() -> None:
    """Missing workers, red workers and a replica that is not live each have a message."""
    assert faults((), BOTH, LIVE) == []
    assert faults((), [], LIVE) == ["no live flush, schedule worker; start `statebroker serve`"]
    assert faults((), [worker("flush"), worker("schedule", "gone")], LIVE) == [
        "no live schedule worker; start `statebroker serve` or `statebroker schedule`"
    ]
    # One that is gone does not count, whatever it said last.
    assert faults((), [*BOTH, worker("flush", "gone", "it was red")], LIVE) == []
    red = worker("flush", "red", "shard 0: nothing arrived")
    assert faults([shard(away="no answer")], [*BOTH, red], Joined("stale")) == [
        "shard 0 is away: no answer",
        "flush-1 is red: shard 0: nothing arrived",
        "a replica that joined was not live after 5 s but stale",
    ]


def test_a_replica_in_doubt_fails_the_check_of_the_whole() -> None:
    """It is live, which is all that a subscriber's own check asks for."""
    doubtful = Joined("live", 0.1, 0.0, 2, ("in doubt: why",))
    assert faults((), BOTH, doubtful) == ["a replica that joined is in doubt: why"]
    assert faults((), BOTH, doubtful, roles=["subscriber"]) == []


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        (["flush"], ["no live flush worker"]),
        (["schedule"], ["schedule-1 is red"]),
        (["flush", "schedule"], ["no live flush worker", "schedule-1 is red"]),
        (["producer"], ["shard 0: 14,576 deltas are accepted and not published"]),
    ],
)
def test_a_role_is_told_only_what_is_its_own(roles: list[str], words: list[str]) -> None:
    """Without a flush worker and with a red scheduler, each role hears of its own fault alone."""
    workers = [worker("flush", "gone"), worker("schedule", "red", "no full state")]
    found = faults([shard(pending_deltas=14_576, pending_ms=10_001)], workers, None, roles=roles)
    assert len(found) == len(words)
    assert all(word in fault for word, fault in zip(words, found, strict=True))


def test_damage_is_a_fault_of_the_namespace() -> None:
    """Each damage is named with the command that mends it."""
    damage = Damage("sb:{x}:0:log", "no batch")
    assert faults((), BOTH, LIVE, [damage]) == [f"damaged: {damage}; run `statebroker repair`"]


def test_a_producer_is_well_while_what_it_writes_is_published() -> None:
    """Pending deltas are no fault until the oldest is over 10 s old."""
    for pending_ms in (None, 0, 10_000):
        assert faults([shard(pending_ms=pending_ms)], [], None, roles=["producer"]) == []
    assert faults([shard(away="no answer")], BOTH, None, roles=["producer"]) != []


def test_a_subscriber_is_judged_by_a_replica_that_joins() -> None:
    """Workers on other hosts are not its business; data that does not arrive is."""
    assert faults([], [], LIVE, roles=["subscriber"]) == []
    assert faults([], BOTH, Joined("loading"), roles=["subscriber"]) != []


def test_here_counts_only_the_workers_of_this_host() -> None:
    """A container whose own worker is gone or red is unhealthy, however well another one is."""
    mine = f"flush-{default_node()}"
    other = worker("flush", name="flush-other-host-12-a1b2c3")
    assert host_of(worker("flush", name=mine)) == this_host()
    assert host_of(other) == "other-host"
    assert host_of(worker("flush", name="flush-odd")) == ""
    assert faults([], [other], None, roles=["flush"]) == []
    (missing,) = faults([], [other], None, roles=["flush"], host=this_host())
    assert missing.startswith(f"no live flush worker on {this_host()}; start ")
    red = worker("flush", "red", "polls have failed", name=mine)
    assert faults([], [other, red], None, roles=["flush"], host=this_host()) == [
        f"{mine} is red: polls have failed"
    ]
    ill_elsewhere = worker("flush", "red", "polls have failed", name="flush-other-host-12-a1b2c3")
    assert (
        faults(
            [], [worker("flush", name=mine), ill_elsewhere], None, roles=["flush"], host=this_host()
        )
        == []
    )
