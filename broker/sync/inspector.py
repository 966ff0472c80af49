"""The inspector for ordinary, threaded code."""

from __future__ import annotations

from typing import Any, Self

from broker.backend.credentials import Credentials
from broker.engine.inspector import InspectorEngine
from broker.protocol.messages import Position
from broker.runtime.closing import END_TIMEOUT_S, Closing
from broker.stats.namespace import NamespaceStatus
from broker.sync.loop_thread import LoopThread


class Inspector:
    """A reader of one namespace's data in Redis; it neither writes nor follows it.

    May be used from many threads. Connects when made. Use it with `with`, or call `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`. None: STATEBROKER_URL, else
            `embedded://`.
        namespace: the state's name. None: STATEBROKER_NAMESPACE, else `default`.
        credentials: called for each new connection to a server; returns the password, or (user,
            password), at once or as an awaitable. It may block. A `CredentialProvider` of
            redis-py is asked likewise. None: those of the URL.

    Raises:
        ConnectError, UnsupportedServerError, EmbeddedError: with the fix.
        NamespaceMismatchError: another protocol version.
        BrokerError: the namespace does not exist yet.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._engine = InspectorEngine(url, namespace=namespace, credentials=credentials)
        self._thread = LoopThread(f"Inspector({self._engine.namespace})")
        try:
            self._thread.call(self._engine.open())
        except BaseException:
            self._thread.stop()
            raise
        self._closing = Closing(self, self._thread, self._engine.close)

    @property
    def namespace(self) -> str:
        """Which state."""
        return self._engine.namespace

    def status(self) -> NamespaceStatus:
        """Return what Redis holds of the namespace: server, shards, nodes and workers.

        docs/statistics.md explains each number. `statebroker status --json` prints its `as_dict()`.
        Each shard's numbers are of one moment, which is not the same for all shards.

        Raises:
            BackendError: Redis failed.
        """
        return self._thread.call(self._engine.status())

    def get(self, key: str) -> tuple[bool, Any]:
        """Return (whether the key exists, its value) at the head; reads little more than it.

        Raises:
            UnreadableValueError: its writer packed what is no value of ours.
            BackendError: Redis failed, or history moved on faster than it could be read.
        """
        return self._thread.call(self._engine.get(key))

    def state(self) -> dict[str, Any]:
        """Return the full-state hash as it is: the state at the last snapshot."""
        return self._thread.call(self._engine.state())

    def folded(self) -> dict[str, Any]:
        """Return the state at the head: the full-state hash folded with the log.

        Raises:
            BackendError: as `get`.
        """
        return self._thread.call(self._engine.folded())

    def folded_shard(
        self, shard: int, position: Position | None
    ) -> tuple[dict[str, Any], Position]:
        """Return one shard's state at a position of its log, or at the head, and that position.

        Args:
            shard: number of the shard.
            position: where to stop; None is the head.

        Raises:
            BackendError: the position is not part of the history that Redis holds (any more).
        """
        return self._thread.call(self._engine.folded_shard(shard, position))

    def altered(self) -> dict[tuple[int, int], list[str]]:
        """Return where the full-state hash differs from what schedulers wrote, as after an edit.

        The server computes digests by key range; only ranges that differ are read.

        Returns:
            (shard, key range) -> the keys that the hash has there now.

        Raises:
            BackendError: Redis failed, or full states follow each other too fast.
        """
        return self._thread.call(self._engine.altered())

    def damaged_tables(self) -> tuple[str, ...]:
        """Return which tables of the full state are damaged, and how, for people.

        New replicas do not show those that cannot be read; everything else goes on. Rows that are
        not what schedulers wrote are named too.

        Raises:
            BackendError: Redis failed, or full states follow each other too fast.
        """
        return self._thread.call(self._engine.damaged_tables())

    def accept(self) -> tuple[str, ...]:
        """Accept the full-state hash as it is: the next full state computes its digest again.

        What cannot be read is removed: keys as well as tables that lack a part.

        Returns:
            What was removed, for people.
        """
        return self._thread.call(self._engine.accept())

    def close(self) -> None:
        """Disconnect. Calling it again does nothing."""
        self._closing.close(self._engine.close, END_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return itself; it is open already."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close it."""
        self.close()
