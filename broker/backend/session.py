"""Joining a namespace: connect, check the server, check the namespace, name its shards."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.credentials import CredentialProvider

from broker.backend import queries
from broker.backend.commands import Commands
from broker.backend.connections import Connections, attached
from broker.backend.credentials import Credentials
from broker.backend.preflight import check_servers, is_cluster, of_cluster
from broker.backend.stored import MadeAs
from broker.backend.urls import chosen_url, has_login
from broker.errors import BackendError, ConfigError, NamespaceMismatchError
from broker.protocol.constants import PROTOCOL_VERSION
from broker.protocol.features import COMPRESS, NEW_FEATURES, text_of
from broker.protocol.frames import FrameReader
from broker.protocol.names import ShardKeys
from broker.runtime.forks import ForkGuard
from broker.runtime.home_loop import HomeLoop
from broker.runtime.tasks import cancel_and_wait
from broker.runtime.threads import call_on_thread

if TYPE_CHECKING:
    from broker.embedded import Attachment


class Session:
    """The connection of one process to one namespace.

    Args:
        url: any supported URL; None: STATEBROKER_URL, else `embedded://`.
        namespace: a validated name.
        shards: the shard count that the caller requires; None accepts that of the namespace.
        credentials: see `checked_credentials`.

    Attributes:
        frames: opens compressed chunks; None while the namespace is not known, and if it has none.
    """

    def __init__(
        self,
        url: str | None,
        namespace: str,
        shards: int | None,
        credentials: Credentials | None = None,
    ) -> None:
        self.given_url = chosen_url(url)
        self._credentials = checked_credentials(self.given_url, credentials)
        self.namespace = namespace
        what = f"this producer, replica or inspector of {namespace!r}"
        self.guard = ForkGuard(what, self)
        self.home = HomeLoop(what)
        self.expected_shards = shards
        self._features: tuple[str, ...] | None = None
        self.frames: FrameReader | None = None
        self.connections = Connections("")
        self.server: dict[str, Any] = {}
        self.keys: list[ShardKeys] = []
        self._attachment: Attachment | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    def check(self) -> None:
        """Return in the process and on the event loop that connected.

        Raises:
            ForkedError: this is a forked child.
            WrongLoopError: this is another loop.
        """
        self.guard.check()
        self.home.check()

    async def connect(self, *, as_worker: bool = False) -> None:
        """Connect to the server and check that it is supported; do not read the namespace.

        Args:
            as_worker: the caller serves the namespace itself.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, ConfigError: cannot connect.
        """
        self.home.enter()
        self._is_closed = False
        self._keeper = asyncio.create_task(self._close_with_loop(), name="session")
        serves = self.namespace if as_worker else None
        url, self._attachment = await self._attach(serves=serves)
        self._use_connections(Connections(url, self._credentials))
        self.server = await check_servers(self.connections, self.client)
        if is_cluster(self.server) and not self.connections.directory.is_sharded:
            await self.connections.close()
            self._use_connections(Connections(of_cluster(url), self._credentials))
            self.server = await check_servers(self.connections, self.client)

    def _use_connections(self, connections: Connections) -> None:
        self.connections = connections
        self.client = connections.commands()
        self.commands = Commands(self.client, connections.directory.publish)

    async def ensure_workers(self) -> None:
        """Start workers for the namespace on an embedded server, unless it is served already.

        Call it after the namespace was created: a worker would create it with its own settings.

        Raises:
            EmbeddedError: the workers do not start.
        """
        before = self._attachment
        if before is not None:
            _, self._attachment = await self._attach(workers_for=self.namespace)
            before.close()

    async def _attach(self, **wanted: str | None) -> tuple[str, Attachment | None]:
        attach = partial(attached, self.given_url, **wanted)
        try:
            return await call_on_thread(attach, "attach")
        except OSError as error:
            raise BackendError(str(error)) from error

    async def create_or_join(self) -> None:
        """Create the namespace if it is new, else check that it fits.

        Raises:
            NamespaceMismatchError: it has another shard count or protocol version, or a
                feature word that this release does not know.
        """
        shards = self.expected_shards or 1
        # Also where Redis was wiped meanwhile: made again with the words that it had.
        features = NEW_FEATURES if self._features is None else self._features
        self._use_namespace(
            await self.commands.join(self.namespace, PROTOCOL_VERSION, shards, features)
        )

    async def try_join(self) -> bool:
        """Join the namespace without creating it; false if it does not exist.

        Raises:
            NamespaceMismatchError: see `create_or_join`.
        """
        found = await queries.config(self.client, self.namespace)
        if found is None:
            return False
        self._use_namespace(found)
        return True

    def _use_namespace(self, made: MadeAs) -> None:
        if reason := made.refusal():
            raise NamespaceMismatchError(f"namespace {self.namespace!r} {reason}")
        shards = made.shards
        if self._features not in (None, made.features):
            raise NamespaceMismatchError(
                f"namespace {self.namespace!r} was made again with the words "
                f"{text_of(made.features) or 'none'}, not {text_of(self._features or ()) or 'none'}"
                "; start again to use these"
            )
        if self.expected_shards not in (None, shards):
            raise NamespaceMismatchError(
                f"namespace {self.namespace!r} was made with {shards} shards, not "
                f"{self.expected_shards}; leave shards out and start again to use {shards}, use "
                "another namespace, or make it again without what it holds: `statebroker repair "
                f"--shards {self.expected_shards} --delete-content`"
            )
        # From now on others mean that the namespace was deleted and created again.
        self.expected_shards = shards
        if self._features is None and COMPRESS in made.features:
            self.frames = FrameReader()
        self._features = made.features
        database = self.connections.database
        self.keys = [
            ShardKeys.of(self.namespace, shard, shards, database) for shard in range(shards)
        ]

    async def close(self) -> None:
        """Close every connection, and detach from the embedded server."""
        await self._disconnect()
        await cancel_and_wait([self._keeper])

    async def _disconnect(self) -> None:
        self._is_closed = True
        await self.connections.close()
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None

    async def _close_with_loop(self) -> None:
        """Disconnect when the loop ends and cancels its tasks: nothing can be closed after that."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if not self._is_closed and not self.guard.is_forked:
                await self._disconnect()


def checked_credentials(url: str, credentials: Credentials | None) -> Credentials | None:
    """Return the source of credentials, if it goes with the URL.

    Raises:
        ConfigError: it is neither a function nor a provider of redis-py; or the URL has a password
            or belongs to an embedded server.
    """
    if credentials is None:
        return None
    if not (callable(credentials) or isinstance(credentials, CredentialProvider)):
        # Not shown: it may be the password.
        kind = type(credentials).__name__
        fix = "give a function that returns the password, or a CredentialProvider of redis-py"
        raise ConfigError([f"credentials is a {kind}; {fix}"])
    if has_login(url) or url.startswith("embedded:"):
        raise ConfigError(
            ["credentials go with the URL of your own server, which has no password itself"]
        )
    return credentials
