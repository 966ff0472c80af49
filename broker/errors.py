"""Every exception that statebroker raises, in one tree.

What happens in normal running (a duplicate, a gap, a busy server) is a return value, not an
exception; these are for what the caller has to know or mend.
"""

from __future__ import annotations

from collections.abc import Iterable


class BrokerError(Exception):
    """Base of every error raised by statebroker; catch it to catch them all."""


class ConfigError(BrokerError):
    """Settings are wrong; nothing was started.

    Attributes:
        faults: every fault found, one sentence each, so that all can be mended at once.
    """

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class EncodeError(BrokerError, ValueError):
    """The caller's key or value cannot be sent; nothing was buffered."""


class DecodeError(BrokerError):
    """Bytes from a peer break the protocol; they are skipped as a whole."""


class BackendError(BrokerError):
    """The Redis server could not do what was asked; the cause is kept."""


class NumpyMissingError(BrokerError, ImportError):
    """Tables need numpy, and it is not installed; everything else works without."""

    def __init__(self) -> None:
        super().__init__("tables need numpy; run: pip install 'statebroker[numpy]'")


class ConnectError(BackendError):
    """The server cannot be reached or does not let us in."""


class AccessError(ConnectError):
    """The server answers, but not to this user and password, or there is no trust between us."""


class UnsupportedServerError(BackendError):
    """The server answers but cannot keep the promises (version, eviction policy, not a Redis)."""


class EmbeddedError(BackendError):
    """The embedded server could not be started or attached to."""


class NamespaceMismatchError(BrokerError):
    """The namespace was made with another protocol version or shard count; nothing was changed."""


class FencedError(BrokerError):
    """Another process took this node name (or this lease); this one must stop writing."""


class BufferFullError(BrokerError):
    """The producer's buffer is full and the policy said not to wait (any longer)."""


class FlushTimeoutError(BrokerError, TimeoutError):
    """Redis has not accepted everything in time; nothing is lost, it stays buffered."""


class NotReplicatedError(FlushTimeoutError):
    """Redis has accepted everything, but not enough replicas or disks have it yet.

    Nothing is lost by that: it stays accepted, and kept for being sent again.

    Attributes:
        replicas: how many replicas had it, as far as known.
        wanted: how many should have.
    """

    def __init__(self, replicas: int, wanted: int, *, fsynced: bool, trouble: str = "") -> None:
        self.replicas, self.wanted = replicas, wanted
        where = "on disk" if fsynced else "in memory"
        told = f"{replicas} of {wanted} replicas have it {where}" if wanted else ""
        if fsynced and replicas >= wanted:
            told = "its disk has not written it (or appendfsync is no: then it never says so)"
        super().__init__(
            f"Redis has accepted it, but in time {told}; it stays accepted and is kept here for "
            "keep_seconds: flush again, or look at `statebroker doctor`"
            + (f" ({trouble})" if trouble else "")
        )


class DataLostError(BrokerError):
    """Redis forgot accepted deltas that this producer no longer kept.

    Attributes:
        lost: how many deltas were lost since the last report.
    """

    def __init__(self, lost: int) -> None:
        self.lost = lost
        super().__init__(
            f"{lost} accepted deltas were lost: Redis came back with less than it had accepted, "
            "and they were older than the producer keeps; write the affected keys again, and raise "
            "keep_seconds or make Redis more durable"
        )


class TokenError(BrokerError, ValueError):
    """A token cannot be read, or is not of this namespace."""


class ReplicaFailedError(BrokerError):
    """The replica gave up; its `reason` says why, and its content must not be trusted."""


class ChangesOverflowError(BrokerError):
    """A reader of changes fell further behind than its queue, and asked to be told."""


class ClosedError(BrokerError):
    """The object was closed before this call."""


class ForkedError(ClosedError):
    """The object was made before a fork and cannot be used in the child; make a new one there."""
