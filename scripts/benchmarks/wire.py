"""A client that costs next to nothing: whole commands as bytes, sent over a bare socket.

What is left of a run in which it takes the place of our producers and replicas is the server.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
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
SIGN = "raw"
EPOCH = b"rawepoch"
PENDING_BYTES = round(SETTINGS["pending_bytes"].default or 0)
KEYS = ShardKeys.of(NAMESPACE, 0, 1)


def command(*words: bytes | str | int) -> bytes:
    """Return one request of the Redis protocol."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    bulks = [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"*%d\r\n%b" % (len(parts), b"".join(bulks))


class Wire:
    """One connection; replies as hiredis reads them, errors as they are.

    Args:
        place: URL of the server, with a unix socket; or a connection that is made already.
    """

    def __init__(self, place: str | socket.socket) -> None:
        if isinstance(place, str):
            self.socket = socket.socket(socket.AF_UNIX)
            # With a time limit a full backlog would be an error.
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
            ConnectionError: the server has gone.
            hiredis.ReplyError: what it answered.
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
        """Return what an append is answered, of a bulk chunk too."""
        while type(found := self.reply()) is not list:
            pass
        return found[-1] if type(found[-1]) is list else found

    def swallow(self, size: int, times: int) -> bytearray:
        """Read so many bytes so many times; return the last of these times.

        Raises:
            ConnectionError: the other side has gone.
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
        """Make one of our commands known to the server; return its hash."""
        found: bytes = self.ask("SCRIPT", "LOAD", source(name))
        return found.decode()

    def run(self, name: str, keys: Sequence[str], *args: bytes | str | int) -> Any:
        """Call one of our commands."""
        return self.ask("EVALSHA", self.load(name), len(keys), *keys, *args)


def open_nodes(wire: Wire, nodes: Sequence[str]) -> list[int]:
    """Make the namespace if it is new, take these names, and return their incarnations."""
    wire.run("join", [config_key(NAMESPACE)], PROTOCOL_VERSION, 1)
    wire.load("append")
    keys = [KEYS.meta, KEYS.writers]
    return [int(wire.run("open", keys, node, "", SIGN, 0, 0, EPOCH)[1]) for node in nodes]


def append(node: str, incarnation: int, number: int, deltas: int, chunk: bytes) -> bytes:
    """Return the requests that append a chunk; `Wire.answer` reads what they are answered."""
    keys = [KEYS.meta, KEYS.writers, KEYS.order, KEYS.pending(node), KEYS.ready]
    values = (node, incarnation, SIGN, number, deltas, 0, "", "", PENDING_BYTES)
    call: tuple[bytes | str | int, ...] = ("EVALSHA", APPEND, len(keys), *keys, *values)
    if len(chunk) < BULK_BYTES:
        return command(*call, chunk, "")
    pushed = command("RPUSH", KEYS.pending(node), chunk)
    return command("MULTI") + pushed + command(*call, "", len(chunk)) + command("EXEC")


def token(reply: Sequence[Any]) -> str:
    """Return what a reader may wait for, from the reply to an append.

    Raises:
        ValueError: it was not accepted.
    """
    if reply[0] != b"OK":
        raise ValueError(f"append was answered {reply!r}")
    return str(Token({0: (reply[2], int(reply[1]))}))


APPEND = hashlib.sha1(source("append").encode()).hexdigest()  # noqa: S324 - how Redis names it
