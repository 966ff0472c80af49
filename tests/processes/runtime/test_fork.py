"""Forks, spawned processes, and programs that end without closing."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import Inspector
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.processes.conftest import NewProgram, Serve
from tests.processes.programs import children, command_line, lives, marked, needs_proc

# Longer than anything here may take; a hang is what these tests are about.
CHILD_SECONDS = 20.0

# Forks with everything in use, tries each call in the child, and goes on in the parent.
FORK = """
import json, os, sys, threading, time
from broker import BrokerError, Inspector, Producer, Replica

url, namespace = sys.argv[1], sys.argv[2]
producer = Producer(url, namespace=namespace, linger=0.5)
replica = Replica(url, namespace=namespace)
inspector = Inspector(url, namespace=namespace)
producer.set("before", 1)
replica.wait_for(producer.flush(10), 10)
half_read = replica.changes()
producer.set("before", 0)
producer.set("before", 1)
replica.wait_for(producer.flush(10), 10)
loop = iter(half_read)
assert next(loop).value == 0
changes = replica.changes()
statuses = replica.statuses()
# Buffered in the parent at the moment of the fork: the child must not send it too.
producer.increment("n")

CALLS = {
    "set": lambda: producer.set("child", 1),
    "delete": lambda: producer.delete("before"),
    "increment": lambda: producer.increment("n", 1000),
    "set_many": lambda: producer.set_many({"child": 1}),
    "flush": lambda: producer.flush(),
    "stats": lambda: producer.stats().accepted,
    "wait_live": lambda: replica.wait_live(),
    "wait_for": lambda: replica.wait_for(""),
    "changes": lambda: replica.changes(),
    "next change": lambda: next(changes),
    "next of a loop": lambda: next(loop),
    "rest of a loop": lambda: next(half_read),
    "statuses": lambda: replica.statuses(),
    "next status": lambda: next(statuses),
    "close statuses": lambda: statuses.close(),
    "health": lambda: [replica.health.ok, *replica.health.reasons],
    "close changes": lambda: changes.close(),
    "read": lambda: replica["before"],
    "copy": lambda: replica.snapshot()[0]["before"],
    "status": lambda: str(replica.status),
    "inspect": lambda: inspector.state(),
    "close producer": lambda: producer.close(),
    "close replica": lambda: replica.close(),
    "close inspector": lambda: inspector.close(),
    "set after close": lambda: producer.set("child", 1),
    "lag": lambda: replica.lag,
}

def attempt(told, name):
    began = time.monotonic()
    try:
        told[name] = [CALLS[name]()]
    except BrokerError as error:
        told[name] = [type(error).__name__, str(error)]
    except BaseException as error:
        told[name] = ["unexpected", repr(error)]
    told[name].append(time.monotonic() - began)

pid = os.fork()
if pid == 0:
    told = {}
    for name in CALLS:
        # A thread each, so that one that hangs does not hide the others.
        thread = threading.Thread(target=attempt, args=(told, name), daemon=True)
        thread.start()
        thread.join(3)
        told.setdefault(name, ["hangs"])
    print(json.dumps({"child": told}, default=str), flush=True)
    with Producer(url, namespace=namespace) as fresh, Replica(url, namespace=namespace) as copy:
        fresh.increment("n", 10)
        copy.wait_for(fresh.flush(10), 10)
        print(json.dumps({"fresh": copy["before"]}), flush=True)
    # Ends like any program, with what atexit has to do.
    sys.exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
producer.increment("n", 100)
replica.wait_for(producer.flush(10), 10)
told = {"status": status, "n": replica["n"], "live": str(replica.status),
        "rest": next(loop).value,
        "changes": [next(changes).key for _ in range(3)], "state": len(inspector.folded())}
for one in (producer, replica, inspector):
    one.close()
print(json.dumps({"parent": told}), flush=True)
"""

# Forks again and again while other threads are in the middle of everything.
STORM = """
import os, sys, threading
from broker import ForkedError, Producer, Replica

done = threading.Event()
count = [0, 0]

def write(which):
    while not done.is_set():
        producer.set_many({f"{which}.{n}": n for n in range(20)})
        producer.increment("n")
        replica.snapshot()
        count[which] += 1

with (
    Producer(sys.argv[1], namespace=sys.argv[2]) as producer,
    Replica(sys.argv[1], namespace=sys.argv[2]) as replica,
):
    replica.wait_live(10)
    threads = [threading.Thread(target=write, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        pid = os.fork()
        if pid == 0:
            try:
                producer.increment("n")
            except ForkedError:
                replica.status, replica.health
                sys.exit(0)
            sys.exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    done.set()
    for thread in threads:
        thread.join()
    replica.wait_for(producer.flush(10), 10)
    assert replica["n"] == sum(count), (replica["n"], count)
"""

# Writes in processes that multiprocessing starts; the parent has a producer in use.
CHILDREN = """
import multiprocessing, sys
from broker import Producer

def write(url, namespace, closes):
    producer = Producer(url, namespace=namespace, linger=1.0)
    for _ in range(100):
        producer.increment("n")
    if closes:
        producer.close()

def main():
    method, url, namespace = sys.argv[1:]
    context = multiprocessing.get_context(method)
    with Producer(url, namespace=namespace) as producer:
        producer.set("parent", 1)
        producer.flush(10)
        processes = [
            context.Process(target=write, args=(url, namespace, closes))
            for closes in (True, False)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            print(process.exitcode, flush=True)
        producer.increment("n", 1000)

if __name__ == "__main__":
    main()
"""

ASYNCIO = """
import asyncio, json, os, sys
from broker import BrokerError, aio

async def open_all():
    producer = await aio.Producer(sys.argv[1], namespace=sys.argv[2]).open()
    replica = await aio.Replica(
        sys.argv[1], namespace=sys.argv[2], staleness_bound=0.5
    ).open()
    await producer.set("a", 1)
    await replica.wait_for(await producer.flush(10), 10)
    return producer, replica

async def use(what):
    try:
        async with asyncio.timeout(3):
            await what
        return "done"
    except TimeoutError:
        return "hangs"
    except Exception as error:
        return type(error).__name__

async def write(producer):
    await producer.set("b", 2)
    await producer.flush()

async def follow(replica):
    return await anext(replica.statuses())

with asyncio.Runner() as runner:
    producer, replica = runner.run(open_all())
    pid = os.fork()
    if pid == 0:
        told = {"write": asyncio.run(use(write(producer))),
                "wait": asyncio.run(use(replica.wait_live())),
                "status": asyncio.run(use(follow(replica)))}
        print(json.dumps(told), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    runner.run(write(producer))
    runner.run(producer.close())
    runner.run(replica.close())
"""

# No URL, no close: a script as people first write it. It stays until it is told to go on.
BARE = """
import os, time
from broker import Producer, Replica
producer = Producer()
replica = Replica()
producer.set("a", 1)
replica.wait_for(producer.flush(30), 30)
print(replica["a"], flush=True)
while not os.path.exists(os.environ["TMPDIR"] + "/go"):
    time.sleep(0.01)
if os.environ["END"] == "fail":
    raise RuntimeError("on purpose")
"""

BARE_FORK = """
import json, os
from broker import Producer, Replica
with Producer() as producer:
    producer.set("parent", 1)
    producer.flush(30)
    pid = os.fork()
    if pid == 0:
        with Producer() as own, Replica() as replica:
            own.set("child", 2)
            replica.wait_for(own.flush(30), 30)
            print(json.dumps(dict(replica)), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    with Replica() as replica:
        producer.set("parent", 3)
        replica.wait_for(producer.flush(30), 30)
        print(json.dumps(dict(replica)), flush=True)
"""


def state_of(server: Server, namespace: str) -> dict[str, Any]:
    """Return the published state once nothing is pending."""
    with Inspector(server.url, namespace=namespace) as inspector:
        eventually(lambda: not inspector.status().shards[0].pending_deltas)
        return inspector.folded()


def test_a_forked_child_gets_clear_errors_and_can_start_anew(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """In the child old objects raise ForkedError and new ones work; the parent continues."""
    serve(valkey.url, namespace)
    result = start.script(FORK, valkey.url, namespace).result(CHILD_SECONDS + 40)
    assert (result.code, result.err) == (0, "")
    reported: dict[str, Any] = {}
    for line in result.out.splitlines():
        reported |= json.loads(line)
    child = reported["child"]
    assert [name for name, how in child.items() if how[0] in ("hangs", "unexpected")] == []
    assert all(how[-1] < 2 for how in child.values()), child
    for name in (
        *("set", "delete", "increment", "set_many", "flush", "set after close"),
        *("wait_live", "wait_for", "changes", "inspect", "next change"),
        *("next of a loop", "rest of a loop"),
        *("statuses", "next status", "read", "copy", "lag", "stats"),
    ):
        assert child[name][0] == "ForkedError", (name, child[name])
        assert "fork" in child[name][1]
    assert child["status"][0] == "closed"
    ok, reason = child["health"][0]
    assert not ok
    assert "made before a fork" in reason
    for name in ("producer", "replica", "inspector", "changes", "statuses"):
        assert child[f"close {name}"][0] is None, (name, child[f"close {name}"])
    assert reported["fresh"] == 1
    parent = reported["parent"]
    assert (parent["status"], parent["live"], parent["n"]) == (7, "live", 111)
    assert parent["changes"] == ["n"] * 3
    assert parent["rest"] == 1
    assert state_of(valkey, namespace) == {"before": 1, "n": 111}


@pytest.mark.slow
def test_forks_while_threads_write(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """A child never waits for a lock that a thread of the parent held; the parent loses nothing."""
    serve(valkey.url, namespace)
    result = start.script(STORM, valkey.url, namespace).result(CHILD_SECONDS)
    assert (result.code, result.err) == (0, "")


@pytest.mark.slow
def test_asyncio_objects_in_a_forked_child_never_hang(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """Objects of the asyncio API raise in a forked child, and the parent's continue."""
    serve(valkey.url, namespace)
    result = start.script(ASYNCIO, valkey.url, namespace).result(CHILD_SECONDS)
    assert result.code == 0, result.err
    assert result.json == dict.fromkeys(("write", "wait", "status"), "ForkedError")
    assert state_of(valkey, namespace) == {"a": 1, "b": 2}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, method: str
) -> None:
    """Children write with producers of their own; one that forgets to close loses nothing."""
    serve(valkey.url, namespace)
    result = start.script(CHILDREN, method, valkey.url, namespace).result(CHILD_SECONDS)
    assert (result.code, result.err) == (0, "")
    assert result.out.split() == ["0", "0"]
    assert state_of(valkey, namespace) == {"parent": 1, "n": 1200}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Give a directory for temporary files with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sb-") as directory:
        yield Path(directory)


@needs_proc
@pytest.mark.parametrize("end", ["end", "fail", "SIGTERM", "SIGINT", "SIGKILL"])
def test_a_bare_script_needs_nothing_and_leaves_nothing(
    start: NewProgram, namespace: str, temporary: Path, end: str
) -> None:
    """Producer() and Replica() work without settings; their processes end with the script."""
    mark = f"mark-{namespace}"
    program = start.script(BARE, MARK=mark, TMPDIR=str(temporary), END=end)
    eventually(lambda: program.out or not program.is_running, 30, lambda: program.err)
    assert program.out == "1\n", program.err
    # The server itself writes over its environment.
    family = {*marked(mark), *(child for pid in marked(mark) for child in children(pid))}
    assert any("valkey-server" in command_line(pid) for pid in family)
    if end.startswith("SIG"):
        program.send_signal(signal.Signals[end])
    else:
        (temporary / "go").touch()
    code = program.wait(10)
    assert (code == 0) == (end == "end"), program.err
    eventually(
        lambda: not any(lives(pid) for pid in family),
        10,
        lambda: str([command_line(pid) for pid in family if lives(pid)]),
    )
    assert marked(mark) == []
    assert [path for path in temporary.iterdir() if path.name != "go"] == []


def test_a_forked_child_shares_the_private_server(start: NewProgram) -> None:
    """With embedded:// parent and forked child see one state, and the parent outlives the child."""
    result = start.script(BARE_FORK).result(CHILD_SECONDS + 40)
    assert (result.code, result.err) == (0, "")
    child, parent = map(json.loads, result.out.splitlines())
    assert child == {"parent": 1, "child": 2}
    assert parent == {"parent": 3, "child": 2}
