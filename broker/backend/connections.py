"""The only place that creates Redis clients and translates their errors.

Library defaults that would break a promise are overridden: the library never retries writes (we
number and resend them ourselves), replies are RESP2 (RESP3 pushes cost 16 ns a byte in redis-py
8.1), and our own heartbeat replaces the health check of idle connections.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from broker.backend.client import Client, Pool
from broker.backend.cluster import Cluster
from broker.backend.credentials import Credentials, CredentialsError, Login
from broker.backend.routing import Routed
from broker.backend.sentinel import SentinelLoginError, Sentinels, primary_only
from broker.backend.server_errors import MEANINGS, Meaning, Then, meaning
from broker.backend.sockets import CONNECTION_CLASSES, Shared
from broker.backend.tls import tls_fix, tls_hint
from broker.backend.topology import Directory, SingleServer, WrongDeploymentError
from broker.backend.urls import (
    EMBEDDED,
    REDIS_PORT,
    Address,
    RedisURL,
    chosen_url,
    invalid_url_error,
    read_url,
    redacted,
)
from broker.errors import (
    AccessError,
    BackendError,
    ConfigError,
    ConnectError,
    DamagedError,
    UnsupportedServerError,
)
from broker.protocol.constants import MIN_REDIS

if TYPE_CHECKING:
    from broker.embedded import Attachment

CONNECT_TIMEOUT_S = 5.0
MAX_SAID_CHARS = 200
REPLY_TIMEOUT_S = 10.0

KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 3}
if hasattr(socket, "TCP_USER_TIMEOUT"):
    KEEPALIVE[socket.TCP_USER_TIMEOUT] = 15_000


class Connections:
    """Clients for one deployment, one per kind of use, so that they cannot disturb each other.

    Args:
        url: any but `embedded://`, as returned by `attached`. "" for none: no client can be made.
        credentials: of the data servers, asked for each new connection; None: those of the URL.

    Attributes:
        name: the URL without its password.
        kind: of deployment: "single", "cluster" or "sentinel".
        directory: which server owns a key.
    """

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        self.url = url
        self._credentials = credentials
        self.name = redacted(url)
        self._target = read_url(url) if url else RedisURL("single", "")
        self.kind = self._target.kind
        self._clients: list[Redis] = []
        self._shared = Shared()
        self.directory: Directory = SingleServer()
        if self._target.kind == "cluster":
            self.directory = Cluster(self._target.seeds, self._short_lived)
        elif self._target.kind == "sentinel":
            self.directory = Sentinels(
                self._target.seeds, self._target.service, self._sentinel, self._short_lived
            )

    @property
    def database(self) -> int:
        """Number of the Redis database that every client selects; 0 on a Cluster."""
        if self.kind == "cluster":
            return 0
        # By the same parser as the clients'; all servers behind Sentinels have the same number.
        any_server = Address("localhost", REDIS_PORT)
        url = self.url if self.kind == "single" else self._target.node_url(any_server)
        return int(parse_url(url).get("db") or 0)

    def commands(self, connections: int = 16) -> Redis:
        """Return a client for commands that do not block; it never retries.

        Args:
            connections: maximum per server.
        """
        return self._tracked(max_connections=connections, socket_timeout=REPLY_TIMEOUT_S)

    def blocking(self, connections: int = 2) -> Redis:
        """Return a client for blocking commands, without a reply timeout."""
        return self._tracked(is_blocking=True, max_connections=connections, socket_timeout=None)

    def subscriber(self, address: Address | None) -> Redis:
        """Return a client for one subscription on one server, without a reply timeout."""
        client = self._server(address, max_connections=2, socket_timeout=None)
        self._clients.append(client)
        return client

    def _tracked(self, *, is_blocking: bool = False, **settings: Any) -> Redis:
        client: Redis
        if self._target.kind == "single":
            client = self._server(None, **settings)
        else:
            client = Routed(
                self.directory,
                lambda address: self._server(address, **settings),
                is_blocking=is_blocking,
            )
        self._clients.append(client)
        return client

    def _short_lived(self, address: Address) -> Redis:
        return self._server(address, max_connections=1, socket_timeout=REPLY_TIMEOUT_S)

    def _sentinel(self, address: Address) -> Redis:
        return self._client(
            self._target.sentinel_url(address), None, max_connections=1, socket_timeout=None
        )

    def _server(self, address: Address | None, **settings: Any) -> Redis:
        """Return a client for one data server."""
        if self._target.kind == "sentinel":
            settings["redis_connect_func"] = primary_only
        url = self.url if address is None else self._target.node_url(address)
        return self._client(url, self._credentials, **settings)

    def _client(self, url: str, credentials: Credentials | None, **settings: Any) -> Redis:
        if not url.startswith("unix://"):
            settings |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
        settings |= {"redirects": self._target.kind == "cluster", "shared": self._shared}
        try:
            return _make(url, credentials, **settings)
        except (ValueError, TypeError):
            # The cause would show the password.
            raise invalid_url_error(self.url) from None

    def renew(self) -> None:
        """Replace every connection to a single server before its next use.

        The name may lead to another server by now, and a connection that only reads gets no reply
        that says so. A Cluster's or Sentinels' directory closes the connections that it has to.
        """
        if self._target.kind == "single":
            self._shared.renewals += 1

    async def discard(self, client: Redis, pubsub: PubSub | None = None) -> None:
        """Close one client created here, and its subscription."""
        # A broken connection needs no closing, but the client may have others. RuntimeError: of a
        # loop that has ended.
        if pubsub is not None:
            with suppress(RedisError, OSError, TimeoutError, RuntimeError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]
        with suppress(RedisError, OSError, TimeoutError, RuntimeError):
            await client.aclose()
        # Last: if this call is cancelled, `close` still closes the client.
        if client in self._clients:
            self._clients.remove(client)

    async def close(self) -> None:
        """Close every client created here."""
        await self.directory.close()
        for client in list(self._clients):
            await self.discard(client)
        await self._shared.close()


def _make(url: str, credentials: Credentials | None, **settings: Any) -> Redis:
    settings |= parse_url(url)
    file = settings.pop("password_file", None)
    if credentials is not None or file is not None:
        user = settings.pop("username", "")
        settings["credential_provider"] = (
            Login.of(user, credentials) if credentials is not None else Login.of_file(user, file)
        )
    settings["connection_class"] = CONNECTION_CLASSES[urlsplit(url).scheme]
    pool = Pool(
        # Without a free connection a call waits instead of failing.
        timeout=None,
        protocol=2,
        decode_responses=False,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **settings,
    )
    client: Redis = Client.from_pool(pool)
    return client


def attached(
    url: str | None, *, workers_for: str | None = None, serves: str | None = None
) -> tuple[str, Attachment | None]:
    """Return the URL to connect to, and the attachment that keeps an embedded server alive.

    Args:
        url: any supported URL; None: see `chosen_url`.
        workers_for: namespace for which an embedded server must run workers; None for none.
        serves: namespace that this process serves as a worker.

    Raises:
        ConfigError: a URL of another scheme.
        EmbeddedError: the embedded server did not start.
    """
    url = chosen_url(url)
    if not url.startswith(EMBEDDED):
        read_url(url)
        return url, None
    # Loaded only where it is used: most processes have a server.
    from broker.embedded import attach, parse_embedded_url  # noqa: PLC0415

    try:
        directory = parse_embedded_url(url)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    attachment = attach(directory, serve=serves, workers_for=workers_for)
    return attachment.url, attachment


@asynccontextmanager
async def translated(action: str, server: str = "Redis") -> AsyncIterator[None]:
    """Translate Redis errors raised in the block into ours; the cause is kept.

    Raises:
        ConnectError: the server cannot be reached, or is not the one to ask now.
        AccessError: authentication or TLS verification failed.
        DamagedError: a key holds what statebroker did not write.
        BackendError: any other error of the server.
    """
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise as_ours(error, action, server) from error


def as_ours(error: Exception, action: str, server: str) -> BackendError:
    """Return our exception for an error of the client library or the network."""
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return ConnectError(
            f"{action}: {server} did not answer in time ({error})" + tls_hint(server, str(error))
        )
    if (ours := _before_the_server(error, action, server)) is not None:
        return ours
    found = meaning(error) or _meaning_after_retries(error)
    if found is None and isinstance(error, AuthenticationError | AuthorizationError):
        found = MEANINGS["WRONGPASS"]
    if found is not None:
        return _with_meaning(error, found, action, server)
    if isinstance(error, RedisConnectionError | OSError):
        if (fix := tls_fix(str(error))) is not None:
            return AccessError(f"{action}: no TLS with {server} ({error}): {fix}")
        return ConnectError(
            f"{action}: cannot reach {server} ({error}); is the server running and the URL right?"
            + tls_hint(server, str(error))
        )
    return _told(action, server, str(error))


def _told(action: str, server: str, said: str) -> BackendError:
    """Return the error for the words of a server, by whether a key holds what cannot be meant.

    A Lua file names the field as `DAMAGED <key> <field>`. Of a key of the wrong type, and of what
    no Lua file expects, only the command is known.
    """
    _, is_named, place = said.rpartition("DAMAGED ")
    if is_named:
        key, _, field = place[:MAX_SAID_CHARS].partition(" ")
        return DamagedError(key, f"{action} cannot use {field}", field=field)
    if "WRONGTYPE" in said:
        return DamagedError(action, "a key holds another type than statebroker wrote (WRONGTYPE)")
    if "user_script" in said and (": attempt to " in said or ": bad argument" in said):
        return DamagedError(action, f"its script fails: {said[:MAX_SAID_CHARS]}")
    return BackendError(f"{action}: {server} says: {said}")


def _meaning_after_retries(error: Exception) -> Meaning | None:
    """Return what the reply means that a routed command got until it gave up.

    Not of redirections: on a Cluster they say nothing about the URL.
    """
    cause = error.__cause__
    found = meaning(cause) if isinstance(cause, ResponseError) else None
    is_waited_for = found is not None and found.then is Then.RECONNECT and found.is_temporary
    return found if is_waited_for else None


def _before_the_server(error: Exception, action: str, server: str) -> BackendError | None:
    """Return our exception for what failed before a command reached a data server."""
    if isinstance(error, CredentialsError):
        return AccessError(f"{action}: cannot log in to {server}: {error}")
    if isinstance(error, WrongDeploymentError):
        return UnsupportedServerError(f"{action}: {server} leads to another deployment: {error}")
    if isinstance(error, SentinelLoginError):
        return AccessError(
            f"{action}: {server} refuses the login to its Sentinels ({error}); it is separate from "
            "that of the data servers: add ?sentinel_password= or ?sentinel_password_file=, and "
            "&sentinel_username= for a user"
        )
    return None


def _with_meaning(error: Exception, found: Meaning, action: str, server: str) -> BackendError:
    code = getattr(error, "status_code", None)
    # redis-py cuts most codes off.
    text = f"{code} {error}" if code and code != "ERR" else str(error)
    ours = found.error(f"{action}: {server} {found.says} ({text}); {found.fix}")
    ours.is_temporary = found.is_temporary
    ours.meaning = found.says
    return ours


async def check_server(client: Redis, name: str) -> dict[str, Any]:
    """Refuse a server that cannot keep the promises; return its INFO.

    Raises:
        ConnectError: unreachable, or (`AccessError`) wrong password.
        UnsupportedServerError: not a Redis, older than 7.0, or evicting keys.
    """
    async with translated("connecting", name):
        try:
            info: dict[str, Any] = await client.info("server", "memory")
        except NoPermissionError:
            # A user without the right to INFO: `statebroker doctor` checks as an admin.
            return {}
        except (InvalidResponse, UnicodeDecodeError, AttributeError, TypeError) as error:
            raise UnsupportedServerError(
                f"{name} answers, but is not a Redis or Valkey ({error}); check host and port"
            ) from error
        except ResponseError as error:
            if "unknown command" in str(error).lower():
                raise UnsupportedServerError(
                    f"{name} answers, but is not a Redis or Valkey ({error}); check host and port"
                ) from error
            raise
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):
        raise UnsupportedServerError(
            f"{name} is a Sentinel, which holds no data; use redis+sentinel://HOST:PORT/SERVICE, "
            "or the URL of a server that it monitors"
        )
    version = str(info.get("redis_version", ""))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_REDIS:
        raise UnsupportedServerError(
            f"{name} is Redis {version or 'of unknown version'}; statebroker needs Redis 7.0, "
            "Valkey 7.2 or newer: upgrade the server"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise UnsupportedServerError(
            f"{name} has maxmemory-policy {policy}, which silently drops state; run "
            "CONFIG SET maxmemory-policy noeviction"
        )
    return info
