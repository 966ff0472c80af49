"""Where gevent replaced threads by greenlets, constructors say so instead of waiting for ever."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from broker.errors import BrokerError
from broker.runtime.greenlets import refuse_greenlets
from broker.testing.server import Server
from tests.processes.conftest import NewProgram, Serve

PATCHED = """
import sys
from gevent import monkey
monkey.patch_all(**({} if sys.argv[3] == "all" else {sys.argv[3]: False}))

import asyncio, threading
from broker import BrokerError, Inspector, Producer, Replica, aio

before = threading.active_count()
for kind in (Producer, Replica, Inspector, Producer):
    try:
        kind(sys.argv[1], namespace=sys.argv[2])
    except BrokerError as error:
        assert "gevent" in str(error) and "broker.aio" in str(error), error
    else:
        raise AssertionError(f"{kind} was made")
assert threading.active_count() == before

async def use():
    producer = aio.Producer(sys.argv[1], namespace=sys.argv[2])
    async with producer, aio.Replica(sys.argv[1], namespace=sys.argv[2]) as replica:
        await producer.set("x", 1)
        await replica.wait_for(await producer.flush(10), 10)
        assert replica["x"] == 1

asyncio.run(use())
"""


@pytest.mark.parametrize("kept", ["all", "thread", "socket"])
def test_patched_threads_are_refused_and_asyncio_works(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, kept: str
) -> None:
    """After patch_all(), also of a part, each constructor raises at once; broker.aio works."""
    pytest.importorskip("gevent", reason="gevent is not installed: pip install gevent")
    serve(valkey.url, namespace)
    result = start.script(PATCHED, valkey.url, namespace, kept).result()
    assert (result.code, result.err) == (0, "")


def test_patched_threads_of_eventlet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eventlet does the same as gevent."""
    patcher = SimpleNamespace(is_monkey_patched=lambda name: name == "thread")
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    with pytest.raises(BrokerError, match=r"Producer needs a real thread .* eventlet"):
        refuse_greenlets("Producer")


def test_an_unpatched_gevent_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was replaced counts, not what is imported."""
    unpatched = SimpleNamespace(is_module_patched=lambda _: False)
    monkeypatch.setitem(sys.modules, "gevent.monkey", unpatched)
    refuse_greenlets("Producer")
