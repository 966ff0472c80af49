"""The connections of our clients: to any address of a host name, closed by telling replies.

redis-py gives the whole time to connect to the first address of a name, and keeps a connection on
which the server answers that it is the wrong one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoReplyError

from broker.backend.server_errors import Then, meaning
from broker.runtime.tasks import first_success

# Another address is tried if one has not answered for so long (RFC 8305).
STAGGER_S: Final = 0.25
# Arguments that hiredis packs as redis-py does.
_PACKED_TYPES: Final = frozenset((bytes, str, int))
# asyncio takes 64 KiB before who sends has to wait.
UNHINDERED_BYTES: Final = 1 << 14
# Of the loop, in which an aborted transport closes its socket.
CLOSING_STEPS: Final = 10


@dataclass(slots=True)
class Shared:
    """What the connections of one deployment share.

    Attributes:
        renewals: how often they were renewed: older ones are not used again.
        transports: of each socket that may still be open; with TLS those below it, which close at
            once.
    """

    renewals: int = 0
    transports: set[asyncio.WriteTransport] = field(default_factory=set)

    def opened(self, transport: asyncio.WriteTransport) -> None:
        """Note a transport, and forget those that are closed."""
        self.transports = self._open()
        self.transports.add(transport)

    async def close(self) -> None:
        """Close what is still open, at once.

        A TLS connection that was cut off closes in the background once the peer has said goodbye. A
        loop that ends before that, as after `asyncio.run()`, would leave its socket open.
        """
        for transport in self._open():
            # RuntimeError: of a loop that has ended.
            with suppress(RuntimeError):
                transport.abort()
        for _ in range(CLOSING_STEPS):
            self.transports = self._open()
            if not self.transports:
                return
            await asyncio.sleep(0)
        self.transports.clear()

    def _open(self) -> set[asyncio.WriteTransport]:
        return {one for one in self.transports if one.get_extra_info("socket").fileno() != -1}


class _ClosedByReplies:
    """Closes itself after a reply that says that another connection is needed.

    Args:
        redirects: whether the client follows redirections of a Cluster itself.
        shared: with the other connections of the deployment.
    """

    def __init__(self, *, redirects: bool, shared: Shared, **settings: Any) -> None:
        self._closing = {Then.RECONNECT} if redirects else {Then.RECONNECT, Then.REDIRECT}
        self._shared = shared
        self._renewed = shared.renewals
        super().__init__(**settings)

    async def connect(self) -> None:
        """Connect, if it is not connected, or only by an older connection."""
        if self._renewed != self._shared.renewals:
            self._renewed = self._shared.renewals
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
        await super().connect()  # type: ignore[misc]

    async def is_ready(self) -> bool:
        """Whether a command can be sent at once: connected, current, and nothing is unread."""
        connection: Any = self
        return (
            connection.is_connected
            and self._renewed == self._shared.renewals
            and not await connection.can_read()
        )

    async def send_packed_command(
        self,
        command: bytes | str | Iterable[bytes],
        check_health: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Send a command, as the base class does, and stop when the caller is cancelled.

        The base class uses `asyncio.wait_for`. Up to Python 3.11 that loses a cancellation which
        arrives as the command has just been sent.
        """
        connection: Any = self
        if not connection.is_connected:
            await connection.connect_check_health(check_health=False)
        if check_health:
            await connection.check_health()
        if isinstance(command, str):
            command = command.encode()
        parts = [command] if isinstance(command, bytes) else list(command)
        send = connection._send_packed_command  # noqa: SLF001 - the base class's
        waiting = connection._writer.transport.get_write_buffer_size()  # noqa: SLF001
        try:
            if waiting + sum(map(len, parts)) <= UNHINDERED_BYTES:
                await send(parts)
            else:
                async with asyncio.timeout(connection.socket_timeout):
                    await send(parts)
        except BaseException as error:
            # What was sent of it is not known.
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise NoReplyError("Timeout writing to socket") from None
            if isinstance(error, OSError):
                raise LostError(f"Error while writing to socket: {error}") from error
            raise

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the bytes of a command, as the base class does, in one call of hiredis.

        The base class joins them in Python, argument by argument: a third of the work of a page of
        the full state.
        """
        name, *rest = args
        kinds = set(map(type, rest))
        if type(name) is not str or not kinds <= _PACKED_TYPES:
            return super().pack_command(*args)  # type: ignore[misc, no-any-return]
        if int in kinds:
            # hiredis 3.5 crashes on one whose text Python does not make.
            rest = [str(one) if type(one) is int else one for one in rest]
        return [pack_command((*name.split(), *rest))]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read one reply. Raises as the base class."""
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except RedisError as error:
            found = meaning(error)
            if found is not None and found.then in self._closing:
                # The pool closes it when it is released: other replies may still be unread.
                self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise


class TCP(_ClosedByReplies, Connection):
    """A TCP connection."""

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            found = await connected_socket(self.host, self.port)
            try:
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                options: Any = self.socket_keepalive_options
                if self.socket_keepalive:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    for option, value in options.items():
                        found.setsockopt(socket.IPPROTO_TCP, option, value)
                reader, writer = await asyncio.open_connection(sock=found)
            except BaseException:
                found.close()
                raise
            transport = writer.transport
            self._shared.opened(transport)
            try:
                await self._secure(writer)
            except BaseException:
                transport.abort()
                raise
            self._reader, self._writer = reader, writer

    async def _secure(self, writer: asyncio.StreamWriter) -> None:
        """Start TLS, if this connection has it."""


class TLS(TCP, SSLConnection):
    """A TCP connection with TLS."""

    _written_at: tuple[float, ...] = ()

    async def _secure(self, writer: asyncio.StreamWriter) -> None:
        # Over a transport of our own: `open_connection(ssl=...)` that is cancelled just after the
        # handshake leaves one open that nobody can reach.
        await writer.start_tls(self._context(), server_hostname=self.host)

    def _context(self) -> ssl.SSLContext:
        """Return the settings of TLS; certificates are replaced before they expire."""
        context = self.ssl_context
        files = (context.ca_certs, context.certfile, context.keyfile)
        written_at = tuple(Path(name).stat().st_mtime for name in files if name)
        if written_at != self._written_at:
            context.context, self._written_at = None, written_at
        return context.get()


class Unix(_ClosedByReplies, UnixDomainSocketConnection):
    """A connection to a unix socket."""

    async def _connect(self) -> None:
        # The base class logs in here, and then once more.
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await asyncio.open_unix_connection(self.path)
            self._shared.opened(self._writer.transport)


async def connected_socket(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that accepts; a silent one delays the next briefly.

    Raises:
        OSError: the name is unknown, or no address accepts.
    """
    addresses = await _addresses(host, port)
    attempts = [partial(_connect_to, family, address) for family, address in addresses]
    try:
        return await first_success(attempts, STAGGER_S, socket.socket.close)
    except ExceptionGroup as failed:
        # redis-py shows the class of an error: keep that of the first address.
        raise failed.exceptions[0] from None


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Return family and address of each address of a host, families alternating."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    else:
        # A number needs no look-up, which may take a thread.
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]  # noqa: PLR2004
    first_family = found[0][0]
    first = [(one[0], one[4]) for one in found if one[0] == first_family]
    other = [(one[0], one[4]) for one in found if one[0] != first_family]
    mixed = [pair for two in zip(first, other, strict=False) for pair in two]
    shared = len(mixed) // 2
    return [*mixed, *first[shared:], *other[shared:]]


async def _connect_to(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)  # noqa: FBT003 - the standard library's own
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


CONNECTION_CLASSES: Final[Mapping[str, type[TCP | Unix]]] = {
    "redis": TCP,
    "rediss": TLS,
    "unix": Unix,
}
