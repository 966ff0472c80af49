"""Host names with several addresses: one that swallows packets does not take the whole time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker import ConnectError, Inspector, Producer, Replica
from broker.backend.sockets import connected_socket
from broker.testing import FaultProxy
from broker.testing.server import Server
from tests.integration.running_workers import NewServing

NAME = "redis.example"


@contextmanager
def swallowing(address: str, port: int = 0) -> Iterator[int]:
    """A port that answers no SYN: its queue of connections is full; give its number."""
    with socket.create_server((address, port), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((address, port))
            waiting.append(filler)
        try:
            yield port
        finally:
            for filler in waiting:
                filler.close()


def resolving(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    """Let a name have these addresses."""
    real = socket.getaddrinfo

    def found(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host != NAME:
            return real(host, port, *rest, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_all_clients_connect_by_the_second_address(
    server: Server, namespace: str, serving: NewServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers, producers, replicas with their subscription and inspectors connect at once."""
    resolving(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    with FaultProxy(server.url) as proxy:
        port = int(proxy.url.rpartition(":")[2].partition("/")[0])
        with swallowing("127.0.0.9", port):
            url = f"redis://{NAME}:{port}/0"
            began = time.monotonic()
            serving(url, namespace)
            with Producer(url, namespace=namespace) as producer:
                producer.set("a", 1)
                token = producer.flush(5)
                with Replica(url, namespace=namespace) as replica:
                    replica.wait_for(token, 5)
            Inspector(url, namespace=namespace).close()
            assert time.monotonic() - began < 10


def test_a_seed_of_a_deployment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of Sentinels and Clusters are of the same class."""
    resolving(monkeypatch, ["127.0.0.9", "127.0.0.1"])

    async def connects(port: int) -> str:
        found = await connected_socket(NAME, port)
        try:
            return str(found.getpeername()[0])
        finally:
            found.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with swallowing("127.0.0.9", port):
            assert asyncio.run(connects(port)) == "127.0.0.1"


def test_an_error_names_why_no_address_works(
    monkeypatch: pytest.MonkeyPatch, namespace: str
) -> None:
    """All addresses refuse: the error is that of a refused connection, at once."""
    resolving(monkeypatch, ["127.0.0.9", "127.0.0.8"])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://{NAME}:{unused.getsockname()[1]}"
        with pytest.raises(ConnectError, match=r"cannot reach redis://redis\.example"):
            Producer(url, namespace=namespace)


def test_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where IPv6 leads nowhere, the first IPv4 address is the second that is tried."""
    order: list[str] = []

    async def refuses(_family: int, address: Any) -> socket.socket:
        order.append(address[0])
        raise ConnectionRefusedError

    six = [(socket.AF_INET6, 1, 6, "", (one, 1, 0, 0)) for one in ("::a", "::b", "::c")]
    four = [(socket.AF_INET, 1, 6, "", (one, 1)) for one in ("10.0.0.1",)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: six + four)
    monkeypatch.setattr("broker.backend.sockets._connect_to", refuses)
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(connected_socket(NAME, 1))
    assert order == ["::a", "10.0.0.1", "::b", "::c"]
