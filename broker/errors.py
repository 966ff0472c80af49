"""All exceptions of statebroker, in one hierarchy.

Events of normal operation (a duplicate, a gap, a busy server) are return values; an exception is
something that the caller must know or fix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from warnings import warn

MAX_SHOWN_CHARS: Final = 40  # of a key

# Names before version 0.2; they go with 1.0.
RENAMED: Final = {
    "ServerUnfitError": "UnsupportedServerError",
    "UnconfirmedError": "NotReplicatedError",
}


def __getattr__(name: str) -> Any:
    """Return an error by its old name, with a warning."""
    if name not in RENAMED:
        raise AttributeError(f"module 'broker.errors' has no attribute {name!r}")
    warn(
        f"broker.errors.{name} is now {RENAMED[name]}; the old name goes with version 1.0",
        DeprecationWarning,
        stacklevel=2,
    )
    return globals()[RENAMED[name]]


class BrokerError(Exception):
    """Base of every error raised by statebroker; catch it to catch them all."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make it again in another process, with its text and attributes."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[BrokerError], args: tuple[Any, ...], state: dict[str, Any]) -> BrokerError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(BrokerError):
    """Settings are wrong; nothing was started.

    Attributes:
        faults: every fault found, one sentence each, so that all can be fixed at once.
    """

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class EncodeError(BrokerError, ValueError):
    """The caller's key or value cannot be sent; nothing was buffered."""


class DecodeError(BrokerError):
    """Bytes from a peer violate the protocol; they are skipped as a whole."""


class UnreadableValueError(BrokerError):
    """A key exists, but what its writer packed is no value of ours; every other key can be read.

    Attributes:
        key: the key.
        node: of who wrote it, if that is known: it was written while this reader followed.
    """

    def __init__(self, key: str, fault: DecodeError, node: str | None = None) -> None:
        self.key = key
        self.node = node
        writer = "the program that wrote it" if node is None else f"who writes as {node!a}"
        name = ascii(key) if len(key) <= MAX_SHOWN_CHARS else f"{key[:MAX_SHOWN_CHARS]!a}..."
        super().__init__(
            f"the value of key {name} cannot be read ({fault}); mend {writer}, and write the key "
            "again"
        )


class BackendError(BrokerError):
    """The Redis server could not execute a command; the original error is the cause.

    Attributes:
        is_temporary: whether it can end without anybody's action, so that trying again may help.
        meaning: what the server's reply means; empty if it did not reply, or this is not known.
    """

    is_temporary = False
    meaning = ""


class DamagedError(BackendError):
    """What lies in Redis is not what statebroker writes: others overwrote or deleted a part of it.

    Nothing is guessed: what cannot be read is refused, and the text says how to mend it.

    Attributes:
        key: the Redis key.
        field: of the hash; empty if none is named.
    """

    # Whoever waits goes on once it is mended.
    is_temporary = True

    def __init__(
        self, key: str, what: str, *, fix: str = "run `statebroker repair`", field: str = ""
    ) -> None:
        self.key = key
        self.field = field
        super().__init__(f"{key} is damaged: {what}; {fix}")


class NumpyMissingError(BrokerError, ImportError):
    """Tables need numpy, and it is not installed; everything else works without."""

    def __init__(self) -> None:
        super().__init__("tables need numpy; run: pip install 'statebroker[numpy]'")


class ConnectError(BackendError):
    """The server cannot be reached, is not the one to ask now, or authentication failed."""

    is_temporary = True


class AccessError(ConnectError):
    """The server answers, but authentication or TLS verification failed."""

    is_temporary = False


class UnsupportedServerError(BackendError):
    """The server answers but cannot keep the promises (version, eviction policy, not a Redis)."""


class EmbeddedError(BackendError):
    """The embedded server could not be started or attached to."""


class NamespaceMismatchError(BrokerError):
    """The namespace does not fit this program; nothing was changed.

    It was made with another protocol version or shard count, or has a feature word that this
    release does not know.
    """


class FencedError(BrokerError):
    """Another process acquired this node name or lease; this process must stop writing."""


class BufferFullError(BrokerError):
    """The producer's buffer is full, and the policy or the timeout forbids to wait longer."""


class StateFullError(BrokerError):
    """The namespace has reached a bound of its state; nothing was buffered. Deletes still work."""


class FlushTimeoutError(BrokerError, TimeoutError):
    """Redis has not accepted all deltas in time; nothing is lost, they stay buffered."""


class NotReplicatedError(FlushTimeoutError):
    """Redis has accepted all deltas, but not enough replicas or disks have them yet.

    Nothing is lost: the deltas stay accepted, and the producer keeps them to send them again.

    Attributes:
        redis_replicas: how many Redis replicas had them, as far as known.
        wanted: how many were required.
    """

    def __init__(
        self, redis_replicas: int, wanted: int, *, fsynced: bool, trouble: str = ""
    ) -> None:
        self.redis_replicas, self.wanted = redis_replicas, wanted
        where = "on disk" if fsynced else "in memory"
        state = f"{redis_replicas} of {wanted} replicas have it {where}" if wanted else ""
        if fsynced and redis_replicas >= wanted:
            state = "its disk has not written it (with appendfsync no it never confirms)"
        super().__init__(
            f"Redis has accepted it, but in time {state}; it stays accepted and is kept here for "
            "keep_seconds: flush again, or look at `statebroker doctor`"
            + (f" ({trouble})" if trouble else "")
        )

    @property
    def replicas(self) -> int:
        """The old name of `redis_replicas`; it goes with version 1.0."""
        warn(
            "NotReplicatedError.replicas is now redis_replicas; the old name goes with version 1.0",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.redis_replicas


class DataLostError(BrokerError):
    """Redis lost accepted deltas that this producer no longer kept.

    Attributes:
        lost: how many deltas were lost since the last such error.
    """

    def __init__(self, lost: int) -> None:
        self.lost = lost
        super().__init__(
            f"{lost} accepted deltas were lost: Redis came back with less than it had accepted, "
            "and they were older than the producer keeps; write the affected keys again, and raise "
            "keep_seconds or make Redis more durable"
        )


class TokenError(BrokerError, ValueError):
    """A token is malformed, or belongs to another namespace."""


class ReplicaFailedError(BrokerError):
    """The replica stopped following; the text says why, and its content must not be trusted."""


class NotLoadedError(BrokerError):
    """The replica has never held the state yet, so it cannot say that a key is absent."""


class ChangesOverflowError(BrokerError):
    """A reader of changes fell behind by more than its queue, with a policy that raises."""


class ClosedError(BrokerError):
    """The object was closed before this call."""


class ForkedError(ClosedError):
    """The object was made before a fork and cannot be used in the child; make a new one there."""


class WrongLoopError(ClosedError):
    """The object was opened on another event loop; only that one can run its calls."""


class ReentrantError(BrokerError):
    """The call cannot wait, because what it would wait for waits for this call.

    For example a signal handler that interrupted a write of the same producer, or the function
    given to `TableView.read`, which runs while no batch can be applied. Nothing was changed.
    """
