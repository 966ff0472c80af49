"""A minimal client: prepared commands as bytes, sent over a socket.

In place of our producers and replicas, it leaves the cost of the server alone.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from struct import Struct
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import hiredis

from broker.backend.commands import source
from broker.config import SETTINGS
from broker.model import Token
from broker.protocol.constants import BULK_BYTES, PROTOCOL_VERSION
from broker.protocol.names import ShardKeys, config_key
from scripts.benchmarks.contenders.statebroker import NAMESPACE

READ_BYTES = 1 << 20
TIMEOUT_S = 60.0
SIGN = b"raw sign"
EPOCH = b"rawepoch"
AS_THE_NAMESPACE = 0xFFFFFFFF
CALL = Struct(">Q8sQIIIIQI")
PENDING_BYTES = round(SETTINGS["pending_bytes"].default or 0)
KEYS = ShardKeys.of(NAMESPACE, 0, 1)


def command(*words: bytes | str | int) -> bytes:
    """Return one request of the Redis protocol."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    bulks = [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"*%d\r\n%b" % (len(parts), b"".join(bulks))


class Wire:
    """One connection; replies are parsed by hiredis, errors are raised.

    Args:
        place: URL of the server, with a unix socket; or an open connection.
    """

    def __init__(self, place: str | socket.socket) -> None:
        if isinstance(place, str):
            self.socket = socket.socket(socket.AF_UNIX)
            # Connect without a timeout: with one, a full backlog would be an error.
            self.socket.connect(urlsplit(place).path)
        else:
            self.socket = place
        self.socket.settimeout(TIMEOUT_S)
        self._reader = hiredis.Reader()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect."""
        self.socket.close()

    def send(self, data: bytes | memoryview) -> None:
        """Send requests."""
        self.socket.sendall(data)

    def reply(self) -> Any:
        """Return the next reply.

        Raises:
            ConnectionError: the server closed the connection.
            hiredis.ReplyError: the server answered with an error.
        """
        while (found := self._reader.gets()) is False:
            data = self.socket.recv(READ_BYTES)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(found, Exception):
            raise found
        return found

    def answer(self) -> Any:
        """Return the reply to an append, also of a bulk chunk."""
        found = self.reply()
        while found in (b"OK", b"QUEUED"):
            found = self.reply()
        return found[-1] if type(found) is list and type(found[0]) is int else found

    def read_repeatedly(self, size: int, times: int) -> bytearray:
        """Read `size` bytes `times` times, into the same buffer; return the last ones.

        Raises:
            ConnectionError: the other side closed the connection.
        """
        buffer = bytearray(size)
        for _ in range(times):
            left = memoryview(buffer)
            while left:
                count = self.socket.recv_into(left)
                if not count:
                    raise ConnectionError("the other side closed the connection")
                left = left[count:]
        return buffer

    def ask(self, *words: bytes | str | int) -> Any:
        """Send one request and return its reply."""
        self.send(command(*words))
        return self.reply()

    def load(self, name: str) -> str:
        """Load one of our Lua commands into the server; return its hash."""
        found: bytes = self.ask("SCRIPT", "LOAD", source(name))
        return found.decode()

    def run(self, name: str, keys: Sequence[str], *args: bytes | str | int) -> Any:
        """Call one of our commands."""
        return self.ask("EVALSHA", self.load(name), len(keys), *keys, *args)


def open_nodes(wire: Wire, nodes: Sequence[str]) -> list[int]:
    """Create the namespace if necessary, open these nodes, and return their incarnations."""
    wire.run("join", [config_key(NAMESPACE)], PROTOCOL_VERSION, 1, "")
    wire.load("append")
    return [
        int(
            wire.run(
                *("open", [KEYS.intake, KEYS.stage(node)]),
                *(node, "", SIGN, 0, 0, EPOCH),
            )[1]
        )
        for node in nodes
    ]


def append(node: str, incarnation: int, number: int, deltas: int, chunk: bytes) -> bytes:
    """Return the requests that append a chunk; `Wire.answer` reads the reply."""
    is_bulk = len(chunk) >= BULK_BYTES
    keys = [KEYS.intake, KEYS.queue, KEYS.ready]
    if is_bulk:
        keys.append(KEYS.stage(node))
    numbers = (number, deltas, 0, AS_THE_NAMESPACE, 0, PENDING_BYTES)
    call = CALL.pack(incarnation, SIGN, *numbers, len(chunk) if is_bulk else 0) + node.encode()
    words: tuple[bytes | str | int, ...] = ("EVALSHA", APPEND, len(keys), *keys, call)
    if not is_bulk:
        return command(*words, chunk)
    pushed = command("RPUSH", KEYS.stage(node), chunk)
    return command("MULTI") + pushed + command(*words, b"") + command("EXEC")


def token(reply: Any) -> str:
    """Return the token of an append, from its reply.

    Raises:
        ValueError: it was not accepted.
    """
    if type(reply) is not bytes:
        raise ValueError(f"append was answered {reply!r}")
    return str(Token({0: (reply[8:16], int.from_bytes(reply[:8]))}))


APPEND = hashlib.sha1(source("append").encode()).hexdigest()  # noqa: S324 - how Redis names it
