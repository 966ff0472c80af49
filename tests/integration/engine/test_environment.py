"""Objects that are made without a URL or namespace take both from the environment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import broker
import broker.aio
from broker import ConfigError, ConnectError, Producer, Replica
from broker.testing.server import Server
from tests.integration.running_workers import NewServing

NAMES = ["Producer", "Replica", "Inspector"]


def opened(face: Any, name: str, *args: Any, **kwargs: Any) -> str:
    """Open and close one object; return the namespace that it chose."""
    if face is broker:
        with getattr(face, name)(*args, **kwargs) as one:
            return str(one.namespace)

    async def scenario() -> str:
        async with getattr(face, name)(*args, **kwargs) as one:
            return str(one.namespace)

    return asyncio.run(scenario())


@pytest.mark.parametrize("face", [broker, broker.aio], ids=["sync", "asyncio"])
@pytest.mark.parametrize("name", NAMES)
def test_the_environment_chooses_unless_an_argument_does(
    server: Server, namespace: str, face: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STATEBROKER_URL and STATEBROKER_NAMESPACE hold for each class of both faces."""
    Producer(server.url, namespace=namespace).close()
    monkeypatch.setenv("STATEBROKER_URL", server.url)
    monkeypatch.setenv("STATEBROKER_NAMESPACE", namespace)
    assert opened(face, name) == namespace
    Producer(server.url, namespace=namespace + "-2").close()
    assert opened(face, name, namespace=namespace + "-2") == namespace + "-2"
    monkeypatch.setenv("STATEBROKER_URL", "unix:///nowhere.sock")
    assert opened(face, name, server.url) == namespace
    with pytest.raises(ConnectError, match=r"nowhere\.sock"):
        opened(face, name)


@pytest.mark.parametrize("face", [broker, broker.aio], ids=["sync", "asyncio"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variable", ["STATEBROKER_URL", "STATEBROKER_NAMESPACE"])
def test_an_empty_variable_is_refused(
    face: Any, name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a mistake, as of a compose file; a throw-away server would hide it."""
    monkeypatch.setenv("STATEBROKER_URL", "unix:///nowhere.sock")
    monkeypatch.setenv(variable, "")
    with pytest.raises(ConfigError, match=f"{variable} is empty; .*or unset it"):
        opened(face, name)


def test_what_is_written_by_environment_is_read_by_argument(
    server: Server, namespace: str, serving: NewServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer without arguments writes to the named server, not to one of its own."""
    serving(server.url, namespace)
    monkeypatch.setenv("STATEBROKER_URL", server.url)
    monkeypatch.setenv("STATEBROKER_NAMESPACE", namespace)
    with Producer() as producer, Replica(server.url, namespace=namespace) as replica:
        producer.set("key", 1)
        replica.wait_for(producer.flush(10), 10)
        assert replica["key"] == 1
