"""TLS with a server that has it: certificates of both sides, and what is said when one is wrong."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
import sys
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker import AccessError, ConfigError, ConnectError, Inspector, Producer, Replica
from broker.backend.connections import Connections, translated
from broker.backend.tls import FILES, tls_fix, tls_hint
from broker.errors import BrokerError
from broker.testing.server import REDIS, free_port
from tests.certificates import YESTERDAY, Certificates
from tests.conftest import OwnServer
from tests.integration.backend.test_preflight import FACES, Face, refusal
from tests.integration.running_workers import NewServing

NewTls = Callable[..., str]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Give certificates of one authority."""
    return Certificates.made(tmp_path / "ours")


@pytest.fixture
def tls(own_server: OwnServer) -> NewTls:
    """Give a function that starts Debian's Redis with TLS alone; returns its URL without options.

    It is the only server of the tests that has it.
    """

    def start(certificates: Certificates, *, wants_client: bool = True) -> str:
        port = free_port()
        own_server(*certificates.server_args(port, wants_client=wants_client), kind=REDIS)
        return f"rediss://localhost:{port}/0"

    return start


@pytest.mark.parametrize("wants_client", [True, False])
def test_everything_works_over_tls(
    tls: NewTls,
    certificates: Certificates,
    namespace: str,
    serving: NewServing,
    wants_client: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Workers, producer, replica and inspector, with and without certificates of clients."""
    client = certificates.client if wants_client else None
    url = tls(certificates, wants_client=wants_client) + certificates.options(client)
    serving(url, namespace, interval=0.1)
    with (
        Producer(url, namespace=namespace) as producer,
        Replica(url, namespace=namespace) as replica,
    ):
        producer.set_many({f"k{n}": n for n in range(100)})
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica) == {f"k{n}": n for n in range(100)}
        with Inspector(url, namespace=namespace) as inspector:
            assert inspector.folded() == dict(replica)


def test_certificates_are_read_again_when_they_were_replaced(
    tls: NewTls, certificates: Certificates, tmp_path: Path
) -> None:
    """Each new connection uses the files as they are: one that expired, and its successor."""
    file = tmp_path / "client.pem"

    async def connects(connections: Connections, certificate: Path) -> None:
        await asyncio.to_thread(shutil.copyfile, certificate, file)
        connections.renew()
        async with translated("connecting"):
            await client.ping()

    async def rotates(connections: Connections) -> None:
        await connects(connections, certificates.client)
        # What the server said before it hung up may be lost; no attempt succeeds, and one says why.
        for _ in range(20):
            with pytest.raises(ConnectError) as refused:
                await connects(connections, certificates.expired)
            if isinstance(refused.value, AccessError):
                break
        assert isinstance(refused.value, AccessError)
        await connects(connections, certificates.client)
        await connections.close()

    file.write_bytes(certificates.client.read_bytes())
    connections = Connections(tls(certificates) + certificates.options(file))
    client = connections.commands(connections=1)
    asyncio.run(rotates(connections))


def test_closing_needs_no_goodbye_of_the_server(
    own_server: OwnServer, certificates: Certificates
) -> None:
    """A connection that was cut off closes in the background, but no later than its client."""
    port = free_port()
    server = own_server(*certificates.server_args(port, wants_client=False), kind=REDIS)
    connections = Connections(f"rediss://localhost:{port}/0{certificates.options()}")

    async def closes() -> None:
        client = connections.commands(connections=1)
        connection = await client.connection_pool.get_connection()
        held = connection._writer.get_extra_info("socket")
        server.pause()
        try:
            await connection.disconnect(nowait=True)
            await client.connection_pool.release(connection)
            assert held.fileno() != -1
            await connections.close()
            assert held.fileno() == -1
        finally:
            server.resume()

    asyncio.run(closes())


def test_cancelled_just_after_the_handshake(
    tls: NewTls, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled in the step that ends the handshake leaves no socket open."""
    connections = Connections(tls(certificates, wants_client=False) + certificates.options())
    complete: Any = vars(SSLProtocol)["_on_handshake_complete"]
    cancelled: list[int] = []
    never_closed: list[object] = []

    async def connect() -> None:
        task = asyncio.ensure_future(connections.commands(connections=1).ping())

        def complete_and_cancel(self: SSLProtocol, error: object) -> None:
            complete(self, error)
            cancelled.append(task.cancel())

        monkeypatch.setattr(SSLProtocol, "_on_handshake_complete", complete_and_cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        await connections.close()

    monkeypatch.setattr(sys, "unraisablehook", lambda found: never_closed.append(found.exc_value))
    asyncio.run(connect())
    gc.collect()
    assert cancelled == [True]
    assert never_closed == []


@FACES
def test_without_a_client_certificate(
    face: Face, tls: NewTls, certificates: Certificates, namespace: str
) -> None:
    """A server that wants one: the options that give it."""
    url = tls(certificates)
    said = refusal(face, url + certificates.options(), namespace, ConnectError)
    # The server hangs up right after it said why; what it said may be lost with that.
    assert "add ssl_certfile and ssl_keyfile" in said or "(ssl_certfile)?" in said


def test_a_client_certificate_that_is_not_taken(
    tls: NewTls, certificates: Certificates, tmp_path: Path, namespace: str
) -> None:
    """The error for an expired or unknown certificate names the certificate and the fix."""
    url = tls(certificates)
    foreign = Certificates.made(tmp_path / "theirs").client
    for client, fix in (
        (certificates.expired, "renew ssl_certfile and ssl_keyfile"),
        (foreign, "does not trust our client certificate"),
    ):
        said = refusal(Producer, url + certificates.options(client), namespace, ConnectError)
        assert fix in said or "(ssl_certfile)?" in said


@FACES
def test_a_server_that_we_do_not_trust(
    face: Face, tls: NewTls, certificates: Certificates, tmp_path: Path, namespace: str
) -> None:
    """Another authority, or none given: what to give; at once, since waiting does not help."""
    url = tls(certificates, wants_client=False)
    for options in (Certificates.made(tmp_path / "theirs").options(), ""):
        said = refusal(face, url + options, namespace, AccessError)
        assert "set ssl_ca_certs to the file of the CA that signed it" in said


def test_a_certificate_for_another_name(
    tls: NewTls, certificates: Certificates, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host of the URL has to be in the certificate."""
    url = tls(certificates, wants_client=False).replace("localhost", "redis.example")
    to_here = socket.getaddrinfo("127.0.0.1", None)[0][4][0]
    real = socket.getaddrinfo

    def resolve(host: str, *rest: object, **more: object) -> object:
        return real(to_here if host == "redis.example" else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    said = refusal(Producer, url + certificates.options(), namespace, AccessError)
    assert "certificate is not valid for 'redis.example'" in said
    assert "use a host that it names, or issue one for this host" in said


def test_a_certificate_that_ended(tls: NewTls, tmp_path: Path, namespace: str) -> None:
    """The server's own certificate has expired."""
    old = Certificates.made(tmp_path / "old", server_ends=YESTERDAY)
    url = tls(old, wants_client=False)
    said = refusal(Producer, url + old.options(), namespace, AccessError)
    assert "its certificate is not valid now; renew it" in said


@pytest.mark.slow
def test_one_side_without_tls(
    tls: NewTls, certificates: Certificates, own_server: OwnServer, namespace: str
) -> None:
    """redis:// to a TLS port, and rediss:// to a port without: the scheme is what to look at."""
    url = tls(certificates)
    said = refusal(Producer, url.replace("rediss", "redis"), namespace, ConnectError)
    assert "if this is its TLS port, use rediss://" in said
    plain = own_server(port=0).url.replace("redis:", "rediss:")
    said = refusal(Producer, plain + certificates.options(), namespace, ConnectError)
    assert "does it use TLS on this port" in said


def test_files_that_are_no_use(
    tls: NewTls, certificates: Certificates, tmp_path: Path, namespace: str
) -> None:
    """Missing files are reported before connecting, all at once; then files of another kind."""
    ours, theirs = certificates, Certificates.made(tmp_path / "theirs")
    url = tls(certificates)

    def said(options: str, kind: type[BrokerError]) -> str:
        return refusal(Producer, url + options, namespace, kind)

    missing = said("?ssl_ca_certs=/no/ca&ssl_certfile=/no/crt&ssl_keyfile=/no/key", ConfigError)
    assert all(f"cannot read {name}=/no/" in missing for name in FILES)
    assert "No such file" in missing
    assert "must be given together" in said(f"?ssl_certfile={ours.client}", ConfigError)
    (tmp_path / "text").write_text("no certificate")
    pair = "must be PEM, and the key must match the certificate"
    assert pair in said(f"?ssl_ca_certs={tmp_path}/text", AccessError)
    mixed = f"&ssl_certfile={ours.client}&ssl_keyfile={theirs.client}"
    assert pair in said(certificates.options() + mixed, AccessError)
    plain = refusal(Producer, f"redis://h{ours.options()}", namespace, ConfigError)
    assert "for TLS the URL must begin with rediss://" in plain


def test_only_words_of_tls_get_a_fix() -> None:
    """Errors of other kinds are left as they are."""
    assert tls_fix("Connection refused") is None
    assert tls_fix("[SSL: SOMETHING_NEW] new") is not None
    assert tls_hint("rediss://h", "Connection refused") == ""
    assert tls_hint("unix:///s", "Connection reset by peer") == ""


@pytest.mark.parametrize(
    "said",
    [
        "Error 104 while writing to socket. Connection reset by peer.",
        "Error 32 while writing to socket. Broken pipe.",
        "Error UNKNOWN while writing to socket. Connection lost.",
        "Connection closed by server.",
        "Error UNKNOWN connecting to h. EOF occurred in violation of protocol (_ssl.c:997).",
    ],
)
def test_a_server_that_hangs_up_raises_a_doubt(said: str) -> None:
    """Which of these it is depends on when it hung up."""
    assert "require a client certificate (ssl_certfile)?" in tls_hint("rediss://h", said)
    assert "use rediss://" in tls_hint("redis://h", said)
