"""The one place where Redis clients are made, and where Redis' errors become ours.

Every default of the library that endangers a promise is set by hand here: writes are never sent
again by the library (we number them and send them again ourselves), replies are RESP2 (RESP3 pushes
cost 16 ns a byte in redis-py 8.1), and idle connections are guarded by our own heartbeat.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from broker.backend.cluster import Cluster
from broker.backend.routing import Routed
from broker.backend.sentinel import Sentinels, primary_only
from broker.backend.tls import tls_fix, tls_hint
from broker.backend.topology import Alone, Directory
from broker.backend.urls import Address, RedisURL, invalid_url_error, read_url, redacted
from broker.embedded import attach, parse_embedded_url
from broker.errors import (
    AccessError,
    BackendError,
    ConfigError,
    ConnectError,
    UnsupportedServerError,
)
from broker.protocol.constants import MIN_REDIS

if TYPE_CHECKING:
    from broker.embedded import Attachment

EMBEDDED = "embedded://"
CONNECT_TIMEOUT = 5.0
REPLY_TIMEOUT = 10.0

KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 3}
if hasattr(socket, "TCP_USER_TIMEOUT"):
    KEEPALIVE[socket.TCP_USER_TIMEOUT] = 15_000


class Connections:
    """Clients for one deployment, each for one kind of use, so that they cannot disturb each other.

    Args:
        url: any but `embedded://`; what `attached` returned. "" for none: nothing can be made.

    Attributes:
        name: the URL without its password.
        kind: of deployment: "single", "cluster" or "sentinel".
        directory: who answers for a key.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = redacted(url)
        self._place = read_url(url) if url else RedisURL("single", "")
        self.kind = self._place.kind
        self._clients: list[Redis] = []
        self.directory: Directory = Alone()
        if self._place.kind == "cluster":
            self.directory = Cluster(self._place.seeds, self._for_one_question)
        elif self._place.kind == "sentinel":
            self.directory = Sentinels(
                self._place.seeds, self._place.service, self._sentinel, self._for_one_question
            )

    def commands(self, connections: int = 16) -> Redis:
        """Return a client for commands that answer at once; nothing is ever sent twice by it.

        Args:
            connections: most at a time, to each server.
        """
        return self._kept(max_connections=connections, socket_timeout=REPLY_TIMEOUT)

    def blocking(self, connections: int = 2) -> Redis:
        """Return a client for commands that block; silence is no error."""
        return self._kept(is_blocking=True, max_connections=connections, socket_timeout=None)

    def subscriber(self, address: Address | None) -> Redis:
        """Return a client for one subscription at one server; silence is no error."""
        client = self._server(address, max_connections=2, socket_timeout=None)
        self._clients.append(client)
        return client

    def _kept(self, *, is_blocking: bool = False, **settings: Any) -> Redis:
        client: Redis
        if self._place.kind == "single":
            client = self._server(None, **settings)
        else:
            client = Routed(
                self.directory,
                lambda address: self._server(address, **settings),
                is_blocking=is_blocking,
            )
        self._clients.append(client)
        return client

    def _for_one_question(self, address: Address) -> Redis:
        return self._server(address, max_connections=1, socket_timeout=REPLY_TIMEOUT)

    def _sentinel(self, address: Address) -> Redis:
        return self._client(
            self._place.sentinel_url(address), max_connections=1, socket_timeout=None
        )

    def _server(self, address: Address | None, **settings: Any) -> Redis:
        """Return a client of one server that holds data."""
        if self._place.kind == "sentinel":
            settings["redis_connect_func"] = primary_only
        url = self.url if address is None else self._place.node_url(address)
        return self._client(url, **settings)

    def _client(self, url: str, **settings: Any) -> Redis:
        if not url.startswith("unix://"):
            settings |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
        try:
            return _make(url, **settings)
        except (ValueError, TypeError):
            # The cause would show the password.
            raise invalid_url_error(self.url) from None

    async def discard(self, client: Redis, pubsub: PubSub | None = None) -> None:
        """Close one client made here, and its subscription."""
        # A connection that is broken is as closed as we want it; the client may have others.
        if pubsub is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]
        with suppress(RedisError, OSError, TimeoutError):
            await client.aclose()
        # Last: one that was cut off in here is closed with all others.
        if client in self._clients:
            self._clients.remove(client)

    async def close(self) -> None:
        """Close every client made here."""
        await self.directory.close()
        for client in list(self._clients):
            await self.discard(client)


def _make(url: str, **settings: Any) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        # More calls than connections wait for each other instead of failing.
        timeout=None,
        protocol=2,
        decode_responses=False,
        socket_connect_timeout=CONNECT_TIMEOUT,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **settings,
    )
    client: Redis = Redis.from_pool(pool)
    return client


def attached(
    url: str | None, *, workers_for: str | None = None, serves: str | None = None
) -> tuple[str, Attachment | None]:
    """Return the URL to connect to, and for embedded servers what keeps them alive.

    Args:
        url: any supported URL; None means `embedded://`.
        workers_for: namespace for which an embedded server has to run workers; None for none.
        serves: namespace for which this process is itself the workers.

    Raises:
        ConfigError: a URL of another scheme.
        EmbeddedError: the embedded server did not start.
    """
    url = url or EMBEDDED
    if not url.startswith(EMBEDDED):
        read_url(url)
        return url, None
    try:
        directory = parse_embedded_url(url)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    attachment = attach(directory, serve=serves, workers_for=workers_for)
    return attachment.url, attachment


@asynccontextmanager
async def translated(action: str, server: str = "Redis") -> AsyncIterator[None]:
    """Turn Redis' errors within the block into ours, cause kept.

    Raises:
        ConnectError: cannot reach the server.
        AccessError: it does not let us in, or we do not trust it.
        BackendError: any other error of the server.
    """
    try:
        yield
    except (RedisTimeoutError, TimeoutError) as error:
        raise ConnectError(
            f"{action}: {server} did not answer in time ({error})" + tls_hint(server, str(error))
        ) from error
    except (AuthenticationError, AuthorizationError) as error:
        raise _refused(action, server, error) from error
    except (RedisConnectionError, OSError) as error:
        if any(word in str(error) for word in _REFUSALS):
            raise _refused(action, server, error) from error
        if (fix := tls_fix(str(error))) is not None:
            raise AccessError(f"{action}: no TLS with {server} ({error}): {fix}") from error
        raise ConnectError(
            f"{action}: cannot reach {server} ({error}); is the server running and the URL right?"
            + tls_hint(server, str(error))
        ) from error
    except NoPermissionError as error:
        raise BackendError(
            f"{action}: {server} does not permit it ({error}); check the ACL of this user"
        ) from error
    except OutOfMemoryError as error:
        raise BackendError(
            f"{action}: {server} is out of memory; raise maxmemory or write less"
        ) from error
    except MovedError as error:
        raise BackendError(
            f"{action}: {server} is a node of a Redis Cluster (MOVED {error}); begin the URL with "
            "redis+cluster:// or rediss+cluster://"
        ) from error
    except RedisError as error:
        raise BackendError(f"{action}: {server} says: {error}") from error


def _refused(action: str, server: str, error: Exception) -> AccessError:
    return AccessError(
        f"{action}: {server} refuses the password ({error}); check user and password in the URL"
    )


_REFUSALS = ("WRONGPASS", "NOAUTH", "invalid password", "username-password")


async def check_server(client: Redis, name: str) -> dict[str, Any]:
    """Refuse a server that cannot keep the promises; return what it says of itself.

    Raises:
        ConnectError: unreachable, or (`AccessError`) wrong password, with the fix.
        UnsupportedServerError: not a Redis, older than 7.0, or evicting keys, with the fix.
    """
    async with translated("connecting", name):
        try:
            info: dict[str, Any] = await client.info("server", "memory")
        except NoPermissionError:
            # A role without INFO: an operator with more rights has checked it.
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
            f"{name} is a Sentinel, which holds no data; give the URL of a server that it watches"
        )
    version = str(info.get("redis_version", ""))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_REDIS:
        raise UnsupportedServerError(
            f"{name} is Redis {version or 'of unknown version'}; Redis 7.0 or Valkey 7.2 is the "
            "oldest that works: upgrade the server"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise UnsupportedServerError(
            f"{name} has maxmemory-policy {policy}, which silently drops state; run "
            "CONFIG SET maxmemory-policy noeviction"
        )
    return info
