"""Credentials that change or expire: each new connection logs in with those of now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.credentials import CredentialProvider

from broker import AccessError, ConfigError, Inspector, Producer, Replica, aio
from broker.backend.credentials import Credentials, Login, first_line
from broker.testing.clusters import ask
from broker.testing.server import Server
from tests.conftest import OwnServer
from tests.integration.running_workers import NewServing, Serving

FACES = (Producer, Replica, Inspector)


def rotate(server: Server, password: str) -> None:
    """Give the user `me` another password, and close its connections, as by DELUSER."""
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "DELUSER", "me")
        client.execute_command("ACL", "SETUSER", "me", "on", f">{password}", "~*", "&*", "+@all")


@pytest.fixture
def guarded(own_server: OwnServer, kind: str) -> Server:
    """Start a server with the user `me`, password `one`."""
    server = own_server(port=0, kind=kind)
    rotate(server, "one")
    return server


def test_a_password_file_is_read_for_each_connection(
    guarded: Server, namespace: str, serving: NewServing, tmp_path: Path
) -> None:
    """Workers, producers and replicas go on after the password was rotated, in either order."""
    file = tmp_path / "password"
    file.write_text("one\n")
    url = f"redis://me@127.0.0.1:{guarded.port}/0?password_file={file}"
    serving(url, namespace)
    with (
        Producer(url, namespace=namespace) as producer,
        Replica(url, namespace=namespace, staleness_bound=0.5) as replica,
    ):
        for number, password in enumerate(("two", "three")):
            if number:
                file.write_text(password)
            rotate(guarded, password)
            producer.set("a", number)
            file.write_text(password)
            replica.wait_for(producer.flush(5), 5)
            assert replica["a"] == number
    Inspector(url, namespace=namespace).close()


class Tokens:
    """A source of tokens that expire: the server knows the newest only."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.given: list[str] = []

    def __call__(self) -> tuple[str, str]:
        """Return the user and a new token, which the older ones make way for."""
        token = f"token-{len(self.given)}"
        self.given.append(token)
        ask(self._server, "ACL", "SETUSER", "me", "on", "resetpass", f">{token}", "~*", "+@all")
        return "me", token

    async def later(self) -> str:
        """Return the token only, some time later."""
        await asyncio.sleep(0)
        return self()[1]


class PlainProvider(CredentialProvider):
    """A provider of redis-py that knows only the plain call, which may block."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def get_credentials(self) -> tuple[str, str]:
        """Return the user and a new token."""
        with pytest.raises(RuntimeError):
            # It may block, so it is not called on the loop.
            asyncio.get_running_loop()
        return self.tokens()


class AsyncProvider(PlainProvider):
    """A provider that has a coroutine for the loop."""

    def get_credentials(self) -> tuple[str, str]:
        """Fail: the other one is there."""
        raise AssertionError

    async def get_credentials_async(self) -> tuple[str]:
        """Return a new token without the user, which the URL has."""
        return (await self.tokens.later(),)


SOURCES: dict[str, Callable[[Tokens], Credentials]] = {
    "function": lambda tokens: tokens,
    "coroutine": lambda tokens: tokens.later,
    "provider": PlainProvider,
    "provider with a coroutine": AsyncProvider,
}


@pytest.mark.parametrize("kind_of_source", SOURCES)
def test_a_source_is_asked_for_each_connection(
    guarded: Server, namespace: str, kind_of_source: str
) -> None:
    """Functions and providers; producers, replicas and inspectors; after a loss again."""
    tokens = Tokens(guarded)
    ask(guarded, "ACL", "SETUSER", "me", "&*")
    source = SOURCES[kind_of_source](tokens)
    user = "me@" if "coroutine" in kind_of_source else ""
    url = f"redis://{user}127.0.0.1:{guarded.port}/0"
    worker = Serving(guarded.url, namespace)
    try:
        with (
            Producer(url, namespace=namespace, credentials=source) as producer,
            Replica(url, namespace=namespace, credentials=source) as replica,
        ):
            producer.set("a", 1)
            replica.wait_for(producer.flush(5), 5)
            before = len(tokens.given)
            ask(guarded, "CLIENT", "KILL", "USER", "me")
            producer.set("a", 2)
            replica.wait_for(producer.flush(5), 5)
            assert len(tokens.given) > before
        Inspector(url, namespace=namespace, credentials=source).close()
    finally:
        worker.stop()


def test_the_asyncio_face_takes_the_same(guarded: Server, namespace: str) -> None:
    """`credentials=` of `broker.aio`."""
    tokens = Tokens(guarded)
    url = f"redis://127.0.0.1:{guarded.port}/0"

    async def writes() -> None:
        async with aio.Producer(url, namespace=namespace, credentials=tokens) as producer:
            await producer.set("a", 1)
            await producer.flush(5)

    asyncio.run(writes())


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("source", "says"),
    [
        (lambda: 1 / 0, "credentials raised ZeroDivisionError"),
        (lambda: 7, "credentials returned a int"),
        (lambda: ("me", None), "credentials returned a tuple"),
        (lambda: "wrong-s3cret", "refuses the password"),
    ],
)
def test_a_source_that_fails_is_reported(
    guarded: Server, namespace: str, face: Any, source: Callable[[], Any], says: str
) -> None:
    """What it raised or returned, without any secret."""
    url = f"redis://me@127.0.0.1:{guarded.port}/0"
    with pytest.raises(AccessError, match=says) as caught:
        face(url, namespace=namespace, credentials=source)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("face", [*FACES, aio.Producer, aio.Replica, aio.Inspector])
@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("redis://h", "s3cret"),
        ("redis://:s3cret@h", lambda: "x"),
        ("redis://h?password=s3cret", lambda: "x"),
        ("redis://h?password_file=s3cret", lambda: "x"),
        ("embedded://", lambda: "x"),
        (None, lambda: "x"),
    ],
)
def test_credentials_that_do_not_go_with_the_url(face: Any, url: str | None, source: Any) -> None:
    """Two passwords, none to give, or a password in place of a function: nothing is started."""
    with pytest.raises(ConfigError, match="credentials") as caught:
        face(url, credentials=source)
    assert "s3cret" not in str(caught.value)


def test_a_password_file_of_a_url_is_checked_at_once(tmp_path: Path, namespace: str) -> None:
    """A missing, empty or second password is a fault of the URL."""
    empty = tmp_path / "empty"
    empty.touch()
    for url, says in (
        (f"redis://h?password_file={tmp_path}/none", "cannot read the password file"),
        (f"redis://h?password_file={empty}", "no password in its first line"),
        (f"redis://:s3cret@h?password_file={empty}", "use one of them"),
        (f"redis+sentinel://h/f?sentinel_password_file={empty}", "no password in its first line"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            Producer(url, namespace=namespace)
        assert "s3cret" not in str(caught.value)


def test_a_source_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login has a limit, so that a connection cannot wait for ever."""
    monkeypatch.setattr("broker.backend.credentials.TIMEOUT_S", 0.01)

    async def hangs() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(redis.AuthenticationError, match="did not return within"):
        asyncio.run(Login("me", hangs).get_credentials_async())


def test_a_file_that_goes_is_reported_by_the_login(tmp_path: Path) -> None:
    """A file that cannot be read any more is an error of the connection, which is tried again."""
    file = tmp_path / "password"
    file.write_text("x")
    login = Login.of_file("me", str(file))
    assert asyncio.run(login.get_credentials_async()) == ("me", "x")
    assert first_line(str(file)) == "x"
    file.unlink()
    with pytest.raises(redis.AuthenticationError, match="cannot read the password file"):
        asyncio.run(login.get_credentials_async())
