"""How objects end that nobody closes: forgotten, in a running loop, with their loop, at exit."""

from __future__ import annotations

import time

import pytest

from broker.testing.server import Server
from tests.processes.conftest import NewProgram, Serve
from tests.processes.programs import needs_proc

# Shared by the programs: what a process holds, and a wait for it.
COMMON = """
import asyncio, gc, os, sys, threading, time
from broker import *
from broker import aio

url, namespace = sys.argv[1:3]
where = {"namespace": namespace}

def held():
    sockets = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            sockets += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass
    return sockets, threading.active_count()

def eventually(what):
    ends = time.monotonic() + 20
    while not what():
        assert time.monotonic() < ends, (held(), threading.enumerate())
        time.sleep(0.01)

with Producer(url, **where) as first:
    first.set("flag", True)
    first.flush(10)
eventually(lambda: threading.active_count() == 1)
before = held()
"""

FORGOTTEN = """
class Node:
    pass

for number in range(8):
    producer, replica = Producer(url, **where), Replica(url, **where)
    inspector = Inspector(url, **where)
    changes, statuses, view = replica.changes(), replica.statuses(), replica.table("t")
    producer.set(f"forgotten.{number}", {"n": number})
    producer.table("t").set("a", 1.0)
    # A cycle: only the garbage collector finds that nothing refers to it.
    node = Node()
    node.itself, node.all = node, (producer, replica, inspector, changes, statuses, view)
del producer, replica, inspector, changes, statuses, view, node
gc.collect()
eventually(lambda: held() == before)
with Replica(url, **where) as replica:
    replica.wait_live(10)
    eventually(lambda: sum(key.startswith("forgotten.") for key in replica) == 8)
"""

ON_ITS_OWN_THREAD = """
cycle = []
cycle += [cycle, Replica(url, **where)]
thread = cycle[1]._thread
loop = thread.loop
del cycle
loop.call_soon_threadsafe(gc.collect)
eventually(lambda: held() == before)
"""

USED_THROUGH_OTHERS = """
changes = Replica(url, **where).changes()
view = Replica(url, **where).table("t")
writer = Producer(url, **where).table("t")
gc.collect()
writer.set("a", 2.0)
with Producer(url, **where) as producer:
    producer.set("later", 1)
    assert any(change.key == "later" for change in changes)
eventually(lambda: dict(view) == {"a": 2.0})
"""

RUNNING_LOOP = """
async def cell():
    with Producer(url, **where) as producer, Replica(url, **where) as replica:
        producer.set("x", 1)
        replica.wait_for(producer.flush(10), 10)
        assert replica["x"] == 1
    for make in (Producer, Replica, Inspector):
        try:
            make("redis://127.0.0.1:1/0", **where)
        except ConnectError:
            continue
        raise AssertionError(make)

asyncio.run(cell())
eventually(lambda: held() == before)
"""

FORGOTTEN_AIO = """
async def forget():
    idle = held()[0]
    for _ in range(5):
        producer = await aio.Producer(url, **where).open()
        replica = await aio.Replica(url, **where).open()
        inspector = await aio.Inspector(url, **where).open()
        await producer.set("forgotten", {"n": 1})
    del producer, replica, inspector
    gc.collect()
    ends = time.monotonic() + 20
    # The loop's own threads for look-ups end with it.
    while held()[0] != idle:
        assert time.monotonic() < ends, (held(), idle)
        await asyncio.sleep(0.01)

asyncio.run(forget())
eventually(lambda: held() == before)
"""

SECOND_LOOP = """
async def first_run():
    made = (aio.Producer(url, **where), aio.Replica(url, **where), aio.Inspector(url, **where))
    for one in made:
        await one.open()
    await made[1].wait_live(10)
    return made

async def second_run(producer, replica, inspector):
    for call in (
        lambda: producer.set("a", {"n": 1}), lambda: producer.set("a", 1),
        lambda: producer.flush(5), lambda: replica.wait_live(5), lambda: replica.verify(),
        lambda: replica.wait_for("", 5), inspector.status, lambda: inspector.get("a"),
    ):
        try:
            await asyncio.wait_for(call(), 5)
        except WrongLoopError as error:
            assert "event loop" in str(error), error
        except TokenError:
            pass
        else:
            raise AssertionError("it was taken")
    for one in (producer, replica, inspector):
        await asyncio.wait_for(one.close(), 5)
    assert replica.status == "closed", replica.status
    assert replica["flag"] is True

made = asyncio.run(first_run())
# The loop closed the connections when it ended.
assert held() == before, held()
asyncio.run(second_run(*made))
assert held() == before, held()
"""

# Ends without close(); says when.
BARE = """
import time
from broker import Producer, Replica, Inspector
producer, replica, inspector = Producer(), Replica(), Inspector()
producer.set("a", 1)
replica.wait_for(producer.flush(30), 30)
producer.increment("a")
print(time.time(), flush=True)
"""


@needs_proc
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(FORGOTTEN, id="forgotten"),
        pytest.param(ON_ITS_OWN_THREAD, id="collected on its own thread"),
        pytest.param(USED_THROUGH_OTHERS, id="used through iterators and views"),
        pytest.param(RUNNING_LOOP, id="in a running loop"),
        pytest.param(FORGOTTEN_AIO, id="forgotten, asyncio"),
        pytest.param(SECOND_LOOP, id="in a second loop, asyncio"),
    ],
)
def test_threads_and_connections_go_with_their_objects(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, program: str
) -> None:
    """Whatever ends an object, nothing hangs, nothing is left, and nothing that was set is lost."""
    serve(valkey.url, namespace)
    result = start.script(COMMON + program, valkey.url, namespace).result()
    assert (result.code, result.err) == (0, "")


def test_an_exit_without_close_is_quiet_and_fast(start: NewProgram) -> None:
    """On the embedded server a program may just end: no word on stderr, and no wait."""
    program = start.script(BARE)
    result = program.result()
    ended = time.time()
    assert (result.code, result.err) == (0, "")
    assert ended - float(result.out) < 3.0
