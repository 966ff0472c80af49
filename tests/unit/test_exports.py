"""What users may rely on: exported names, their public members, and old names until 1.0."""

from __future__ import annotations

import importlib
from enum import Enum
from typing import Any

import pytest

import broker
import broker.aio
import broker.sync
import broker.testing
from broker.aio.iterator import Reader as AsyncReader
from broker.aio.table_writer import TableWriter as AsyncTableWriter
from broker.engine.producer import chosen_replicas
from broker.engine.table_view import TableView
from broker.sync.iterator import Reader
from broker.sync.table_writer import TableWriter
from broker.testing import validators

PRODUCER = "close delete flush increment namespace node set set_many stats table"
REPLICA = (
    "changes close get health items keys lag namespace position positions snapshot stats status "
    "statuses table tables values verify wait_for wait_live"
)
INSPECTOR = "accept altered close damaged_tables folded folded_shard get namespace state status"
TABLE_WRITER = "delete delete_many increment increment_many keys set set_many set_records"

ERRORS = (
    "AccessError BackendError BrokerError BufferFullError ChangesOverflowError ClosedError "
    "ConfigError ConnectError DataLostError DecodeError EmbeddedError EncodeError FencedError "
    "FlushTimeoutError ForkedError NamespaceMismatchError NotLoadedError NotReplicatedError "
    "NumpyMissingError ReentrantError ReplicaFailedError StateFullError TokenError "
    "UnreadableValueError UnsupportedServerError WrongLoopError"
)
STATISTICS = (
    "NamespaceStatus NodeStats ProducerStats ReplicaStats ServerInfo ShardStats WorkerStatus"
)
EXPORTS = {
    "broker": f"ABSENT {ERRORS} {STATISTICS} Change Difference Health Inspector Position Producer "
    "Replica Status StatusChange Token Verification",
    "broker.aio": "Inspector Producer Replica",
    "broker.testing": "FaultProxy Journal Lineage read_journal",
}

MEMBERS = [
    (broker.Producer, PRODUCER),
    (broker.Replica, REPLICA),
    (broker.Inspector, INSPECTOR),
    (broker.aio.Producer, f"{PRODUCER} open"),
    (broker.aio.Replica, f"{REPLICA} open"),
    (broker.aio.Inspector, f"{INSPECTOR} open"),
    (TableWriter, TABLE_WRITER),
    (AsyncTableWriter, TABLE_WRITER),
    (Reader, "close"),
    (AsyncReader, "aclose close"),
    (TableView, "copy get items keys kind name parts read timestamp to_arrow to_pandas values"),
    (broker.Change, "count index key operation position resync shard timestamp_ms value"),
    (broker.Difference, "history key offset replica shard"),
    (broker.Health, "ok reasons"),
    (broker.Position, "batch_id epoch offset"),
    (broker.StatusChange, "after at before reason shard"),
    (broker.NamespaceStatus, "as_dict get items namespace nodes protocol server shards workers"),
    (broker.NodeStats, "as_dict chunks deltas get idle_ms items node pending_deltas"),
    (
        broker.ProducerStats,
        (
            "accepted as_dict buffer_bytes buffered busy bytes bytes_saved chunks conflated "
            "duplicates get items lost pending resent retries"
        ),
    ),
    (
        broker.ReplicaStats,
        (
            "as_dict batches_applied batches_duplicate bytes_compressed bytes_received "
            "bytes_uncompressed catch_ups changes_conflated chunks_compressed chunks_skipped "
            "cuts deltas_applied deltas_refused deltas_skipped deltas_superseded forks "
            "full_state_altered gaps get health items keys keys_damaged keys_repaired "
            "lag_s loads loads_altered offset packets packets_foreign packets_unreadable "
            "reconnects refused self_checks self_checks_failed self_checks_undecided "
            "shards_uncompared silences status status_changes status_changes_conflated "
            "tables_damaged unreadable values_unreadable"
        ),
    ),
    (broker.ServerInfo, "as_dict deployment get items name version"),
    (
        broker.ShardStats,
        (
            "accepted appends as_dict away batch_id batches by_age by_count bytes_published "
            "covered dead epoch fence get heartbeat_ms held_by items last_packet_ms lease "
            "log_bytes log_entries max_age_ms missing offset pending_bytes pending_chunks "
            "pending_deltas pending_ms published shard slot snapshot_age_ms snapshot_offset "
            "state_keys"
        ),
    ),
    (broker.WorkerStatus, "as_dict get health items reason role seen_ms worker"),
    (broker.Token, "marks parse"),
    (broker.Verification, "bytes_read damaged differences is_equal keys ranges"),
    (broker.testing.FaultProxy, "cut heal reset url"),
    (broker.testing.Journal, "close write"),
    (broker.testing.Lineage, "before chain contains states"),
]
STATUSES = "CATCHING_UP CLOSED CONNECTING FAILED LIVE LOADING STALE"


@pytest.mark.parametrize("module", EXPORTS)
def test_a_module_exports_these_names(module: str) -> None:
    """A name that comes or goes is a decision: it is written down here too."""
    found = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(EXPORTS[module].split())
    assert all(getattr(found, name) is not None for name in found.__all__)


def test_the_sync_face_is_exported_by_broker_itself() -> None:
    """`broker.sync` holds modules only; users import from `broker`."""
    assert not hasattr(broker.sync, "__all__")
    assert broker.Producer.__module__ == "broker.sync.producer"


@pytest.mark.parametrize(
    ("kind", "members"),
    [pytest.param(*one, id=f"{one[0].__module__}.{one[0].__name__}") for one in MEMBERS],
)
def test_a_class_has_these_public_members(kind: type, members: str) -> None:
    """Everything else of an object is private."""
    # Slots and fields without a default are not all in dir().
    names = {*dir(kind), *getattr(kind, "__dataclass_fields__", ())}
    assert sorted(name for name in names if not name.startswith("_")) == sorted(members.split())


def test_the_statuses_are_these() -> None:
    """Programs compare with them."""
    assert issubclass(broker.Status, Enum)
    assert sorted(broker.Status.__members__) == STATUSES.split()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("broker", "ServerUnfitError", broker.UnsupportedServerError),
        ("broker", "UnconfirmedError", broker.NotReplicatedError),
        ("broker.errors", "ServerUnfitError", broker.UnsupportedServerError),
        ("broker.errors", "UnconfirmedError", broker.NotReplicatedError),
        ("broker.faults", "FaultProxy", broker.testing.FaultProxy),
        ("broker.faults.validators", "ordered", validators.ordered),
    ],
)
def test_an_old_name_works_and_warns(module: str, old: str, new: Any) -> None:
    """Until version 1.0 it is the same object."""
    with pytest.warns(DeprecationWarning, match=r"is now .* goes with version 1\.0"):
        assert getattr(importlib.import_module(module), old) is new


def test_the_old_argument_of_flush_works_and_warns() -> None:
    """`replicas=` means `redis_replicas=`; the new name gives no warning."""
    with pytest.warns(DeprecationWarning, match=r"flush\(redis_replicas=\)"):
        assert chosen_replicas(0, 2) == 2
    assert chosen_replicas(3, None) == 3


def test_the_old_attribute_of_an_error_works_and_warns() -> None:
    """`NotReplicatedError.replicas` is `redis_replicas`."""
    error = broker.NotReplicatedError(1, 2, fsynced=False)
    with pytest.warns(DeprecationWarning, match="redis_replicas"):
        assert error.replicas == error.redis_replicas == 1
