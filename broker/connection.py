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
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from broker.embedded import attach, parse_embedded_url
from broker.errors import AccessError, BackendError, ConfigError, ConnectError, ServerUnfitError
from broker.protocol import MIN_REDIS
from broker.tls import FILES, tls_doubt, tls_faults, tls_fix

if TYPE_CHECKING:
    from broker.embedded import Attachment

# What the rest of the project calls a Redis client; only this module makes one.
Client: TypeAlias = Redis

EMBEDDED = "embedded://"
SCHEMES = ("embedded", "redis", "rediss", "unix")

URL_OPTIONS = {
    *("db", "client_name", "username", "password"),
    *(*FILES, "ssl_check_hostname", "ssl_cert_reqs"),
}

CONNECT_TIMEOUT = 5.0
REPLY_TIMEOUT = 10.0

KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 3}
if hasattr(socket, "TCP_USER_TIMEOUT"):
    KEEPALIVE[socket.TCP_USER_TIMEOUT] = 15_000


class Connections:
    """Clients for one server, each for one kind of use, so that they cannot disturb each other.

    Args:
        url: `redis://`, `rediss://` or `unix://`; what `attached` returned.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = redacted(url)
        self._clients: list[Redis] = []

    def commands(self, connections: int = 16) -> Redis:
        """Return a client for commands that answer at once; nothing is ever sent twice by it."""
        return self._client(max_connections=connections, socket_timeout=REPLY_TIMEOUT)

    def blocking(self, connections: int = 2) -> Redis:
        """Return a client for blocking commands or one subscription; silence is no error."""
        return self._client(max_connections=connections, socket_timeout=None)

    def _client(self, **settings: Any) -> Redis:
        if not self.url.startswith("unix://"):
            settings |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
        try:
            return self._make(**settings)
        except (ValueError, TypeError):
            # The cause would show the password.
            raise unreadable(self.url) from None

    def _make(self, **settings: Any) -> Redis:
        pool = BlockingConnectionPool.from_url(
            self.url,
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
        self._clients.append(client)
        return client

    async def discard(self, client: Redis, pubsub: PubSub | None = None) -> None:
        """Close one client made here, and its subscription."""
        self._clients.remove(client)
        # A connection that is already broken is as closed as we want it.
        with suppress(RedisError, OSError, TimeoutError):
            if pubsub is not None:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            await client.aclose()

    async def close(self) -> None:
        """Close every client made here."""
        for client in list(self._clients):
            await self.discard(client)


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
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "://" not in url:
        raise ConfigError(
            [
                f"url {redacted(url)!r} has no known scheme; use one of "
                + ", ".join(f"{name}://" for name in SCHEMES)
            ]
        )
    if scheme != "embedded":
        check_url(url)
        return url, None
    try:
        directory = parse_embedded_url(url)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    attachment = attach(directory, serve=serves, workers_for=workers_for)
    return attachment.url, attachment


def check_url(url: str) -> None:
    """Refuse a URL that cannot be read, before anything connects.

    Raises:
        ConfigError: host, port, database or an option is not one, or a file of TLS is missing.
    """
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, keep_blank_values=True)
        known = set(options) <= URL_OPTIONS
        # Reading the port checks it.
        readable = parts.scheme == "unix" or (bool(parts.hostname), parts.port)[0]
    except ValueError:
        raise unreadable(url) from None
    if not (known and readable):
        raise unreadable(url)
    faults = tls_faults(parts.scheme, {name: values[-1] for name, values in options.items()})
    if faults:
        raise ConfigError([f"url {redacted(url)!r}: {fault}" for fault in faults])


def unreadable(url: str) -> ConfigError:
    """Say that a URL cannot be read, without showing its password."""
    return ConfigError(
        [
            f"url {redacted(url)!r} cannot be read; it is "
            "scheme://[user:password@]host[:port][/db], with / @ : ? # in a password "
            "percent-encoded, and of options only " + ", ".join(sorted(URL_OPTIONS))
        ]
    )


def redacted(url: str) -> str:
    """Return a URL without its password, fit for logs and errors."""
    # Up to the last @: a password that should have been percent-encoded is hidden as well.
    shown = re.sub(r"^([a-z+]+://[^:/?#@]*):.*@", r"\1:***@", url, flags=re.IGNORECASE)
    return shown.partition("?")[0]


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
            f"{action}: {server} did not answer in time ({error})" + tls_doubt(server, str(error))
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
            + tls_doubt(server, str(error))
        ) from error
    except NoPermissionError as error:
        raise BackendError(
            f"{action}: {server} does not permit it ({error}); check the ACL of this user"
        ) from error
    except OutOfMemoryError as error:
        raise BackendError(
            f"{action}: {server} is out of memory; raise maxmemory or write less"
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
        ServerUnfitError: not a Redis, older than 7.0, or evicting keys, with the fix.
    """
    async with translated("connecting", name):
        try:
            info: dict[str, Any] = await client.info("server", "memory")
        except NoPermissionError:
            # A role without INFO: an operator with more rights has checked it.
            return {}
        except (InvalidResponse, UnicodeDecodeError, AttributeError, TypeError) as error:
            raise ServerUnfitError(
                f"{name} answers, but is not a Redis or Valkey ({error}); check host and port"
            ) from error
        except ResponseError as error:
            if "unknown command" in str(error).lower():
                raise ServerUnfitError(
                    f"{name} answers, but is not a Redis or Valkey ({error}); check host and port"
                ) from error
            raise
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):
        raise ServerUnfitError(
            f"{name} is a Sentinel, which holds no data; give the URL of a server that it watches"
        )
    version = str(info.get("redis_version", ""))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_REDIS:
        raise ServerUnfitError(
            f"{name} is Redis {version or 'of unknown version'}; Redis 7.0 or Valkey 7.2 is the "
            "oldest that works: upgrade the server"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ServerUnfitError(
            f"{name} has maxmemory-policy {policy}, which silently drops state; run "
            "CONFIG SET maxmemory-policy noeviction"
        )
    return info
