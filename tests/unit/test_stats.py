"""Typed statistics: every field documented, the dict as it was, and dict access until 1.0."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest

from broker import stats
from broker.engine.sender import _Counts as SendCounts
from broker.model import Health, Status
from broker.stats import (
    NamespaceStatus,
    NodeStats,
    ProducerStats,
    ReplicaStats,
    ServerInfo,
    ShardStats,
    Statistics,
    WorkerStatus,
)
from workers.flush import _Counts as FlushCounts
from workers.scheduler import _Counts as ScheduleCounts

CLASSES = [getattr(stats, name) for name in stats.__all__ if name != "Statistics"]
NUMBERS = {"int", "float", "int | None"}
# Numbers that name something; nothing can be said of how they grow.
NAMES = {"shard", "protocol", "slot"}

each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def documented(kind: type[Statistics]) -> dict[str, str]:
    """Return field -> what the docstring's `Attributes` say of it, in one line."""
    _, _, attributes = inspect.getdoc(kind).partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): ((?:.+\n?)(?:^ {8}.+\n?)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


@each_class
def test_every_field_is_documented(kind: type[Statistics]) -> None:
    """The docstring documents exactly the fields, in their order, and when numbers grow."""
    reported = documented(kind)
    assert list(reported) == [one.name for one in dataclasses.fields(kind)]
    for one in dataclasses.fields(kind):
        if one.type in NUMBERS and one.name not in NAMES:
            assert re.match(r"[a-z -]+; (counter|gauge), ", reported[one.name]), one.name


@each_class
def test_statistics_are_values(kind: type[Statistics]) -> None:
    """Frozen, slotted, made with keywords only, and every field must be given."""
    fields = dataclasses.fields(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert vars(kind)["__slots__"] == tuple(one.name for one in fields)
    assert all(one.kw_only and one.default is dataclasses.MISSING for one in fields)


def sample() -> NamespaceStatus:
    """A status with one of everything."""
    numbers: dict[str, Any] = {one.name: 3 for one in dataclasses.fields(ShardStats)}
    shard = ShardStats(
        **numbers | {"epoch": "e", "batch_id": "b", "lease": None, "held_by": None, "away": ""}
    )
    return NamespaceStatus(
        namespace="fleet",
        protocol=3,
        server=ServerInfo(name="redis", version="8.0.0", deployment="single"),
        shards=(shard,),
        nodes=(NodeStats(node="n", chunks=1, deltas=2, pending_deltas=0, idle_ms=None),),
        workers=(WorkerStatus(worker="w", role="flush", seen_ms=4, health="green", reason=""),),
    )


def replica_stats() -> ReplicaStats:
    """The statistics of a replica that is stale."""
    numbers: dict[str, Any] = {one.name: 1 for one in dataclasses.fields(ReplicaStats)}
    health = Health(ok=False, reasons=("nothing was heard",))
    return ReplicaStats(**numbers | {"status": Status.STALE, "health": health, "lag_s": 0.5})


def test_the_dict_of_a_status_is_what_the_command_prints() -> None:
    """Nested statistics become dicts in lists, and JSON takes them."""
    reported = sample().as_dict()
    assert json.loads(json.dumps(reported)) == reported
    assert reported["server"] == {"name": "redis", "version": "8.0.0", "deployment": "single"}
    assert reported["nodes"] == [
        {"node": "n", "chunks": 1, "deltas": 2, "pending_deltas": 0, "idle_ms": None}
    ]
    assert reported["workers"][0]["health"] == "green"


def test_the_dict_of_a_shard_has_the_names_it_had() -> None:
    """`status --json` keeps every key, the older name of the snapshot's offset included."""
    (shard,) = sample().as_dict()["shards"]
    assert set(shard) == {
        *("shard", "epoch", "offset", "batch_id", "appends", "covered", "accepted", "published"),
        *("pending_bytes", "by_count", "by_age", "missing", "dead", "log_bytes", "snap_offset"),
        *("fence", "pending_deltas", "pending_chunks", "pending_ms", "batches", "bytes_published"),
        *("log_entries", "state_keys", "snapshot_offset", "snapshot_age_ms", "last_packet_ms"),
        *("lease", "slot", "held_by", "away", "heartbeat_ms", "max_age_ms"),
    }
    assert shard["snap_offset"] == shard["snapshot_offset"] == 3


def test_the_dict_of_a_replica_is_plain() -> None:
    """Status and health are plain text and a dict, as they were before there were classes."""
    reported = replica_stats().as_dict()
    assert type(reported["status"]) is str
    assert (reported["status"], reported["lag_s"]) == ("stale", 0.5)
    assert reported["health"] == {"ok": False, "reasons": ("nothing was heard",)}


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        (lambda reported: reported["chunks"], 2),
        (lambda reported: reported.get("chunks"), 2),
        (lambda reported: reported.get("nothing", 7), 7),
        (lambda reported: "chunks" in reported, True),
        (lambda reported: "nothing" in reported, False),
        (lambda reported: list(reported)[:2], ["node", "chunks"]),
        (lambda reported: dict(reported.items())["deltas"], 3),
    ],
)
def test_access_as_to_a_dict_works_and_warns(access: Any, expected: Any) -> None:
    """Code for the dict of older versions works until 1.0, with a warning at the caller's line."""
    reported = NodeStats(node="n", chunks=2, deltas=3, pending_deltas=0, idle_ms=5)
    with pytest.warns(DeprecationWarning, match=r"NodeStats\.as_dict") as caught:
        assert access(reported) == expected
    assert caught[0].filename == __file__


def test_a_name_that_is_no_field_is_a_key_error() -> None:
    """As the dict of older versions."""
    with (
        pytest.warns(DeprecationWarning, match="is no dict"),
        pytest.raises(KeyError, match="nothing"),
    ):
        sample()["nothing"]


def test_dict_access_gives_nested_dicts() -> None:
    """`status()["shards"][0]["offset"]` works as a whole, for one warning."""
    with pytest.warns(DeprecationWarning, match="is no dict") as caught:
        assert sample()["shards"][0]["offset"] == 3
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("counted", "kind"),
    [
        (SendCounts, ProducerStats),
        (FlushCounts, stats.FlushShardStats),
        (ScheduleCounts, stats.SchedulerShardStats),
    ],
)
def test_what_is_counted_is_what_is_reported(counted: type[Any], kind: type[Statistics]) -> None:
    """Each internal counter has the name of a field."""
    assert {one.name for one in dataclasses.fields(counted)} <= {
        one.name for one in dataclasses.fields(kind)
    }


def test_every_class_of_the_folder_is_loaded_by_its_name() -> None:
    """`broker.stats` names them all, and loads none before it is used."""
    modules = [import_module(one.name) for one in iter_modules(stats.__path__, "broker.stats.")]
    found = {
        one.__name__
        for module in modules
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Statistics)
    }
    assert found == set(stats.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        stats.Nothing  # noqa: B018
