"""`serve`, `flush` and `schedule` as real processes: starting, sharing work, stopping, dying."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import Inspector, Producer, Replica
from broker.backend.queries import log_entry
from broker.protocol.codec import decode_packet
from broker.protocol.constants import PROTOCOL_VERSION
from broker.protocol.messages import Batch
from broker.protocol.names import ShardKeys
from broker.stats import NamespaceStatus
from broker.testing.server import KINDS, Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, Serve
from tests.processes.programs import (
    START_SECONDS,
    STOP_SECONDS,
    Program,
    children,
    command_line,
    lives,
    marked,
    needs_proc,
)

pytestmark = needs_proc

# The lease lasts 9 s; a standby asks for it every 3 s, and at every interval.
TAKE_OVER_SECONDS = 11.0
# As /proc/net/tcp says it.
ESTABLISHED = "01"
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Writes without a pause until SIGTERM, then flushes and says what it wrote.
WRITER = """
import json, signal, sys
from broker import Producer

done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(True))
with Producer(sys.argv[1], namespace=sys.argv[2], node=sys.argv[3]) as producer:
    n = 0
    while not done:
        n += 1
        producer.increment("n")
        producer.set(f"{producer.node}.{n % 5000}", n)
        if n == 1:
            print("writing", flush=True)
    producer.flush(20)
print(json.dumps({"written": n, "deltas": producer.stats().accepted}), flush=True)
"""


def status(url: str, namespace: str) -> NamespaceStatus:
    """Return what Redis holds of a namespace."""
    with Inspector(url, namespace=namespace) as inspector:
        return inspector.status()


def roles(url: str, namespace: str) -> dict[str, int]:
    """Return how many workers of each role sent a heartbeat in the last three seconds."""
    found: dict[str, int] = {}
    for worker in status(url, namespace).workers:
        if worker.seen_ms < 3000:
            found[worker.role] = found.get(worker.role, 0) + 1
    return found


@contextmanager
def holding(url: str, namespace: str) -> Iterator[Callable[[], str | None]]:
    """Return a function that names the scheduler with the lease of the only shard."""
    with Inspector(url, namespace=namespace) as inspector:
        yield lambda: inspector.status().shards[0].lease


def assert_complete(url: str, namespace: str, deltas: int) -> dict[str, Any]:
    """Wait until everything is published and in the full state; return the content."""
    with (
        Inspector(url, namespace=namespace) as inspector,
        Replica(url, namespace=namespace) as replica,
    ):

        def is_complete() -> bool:
            (shard,) = inspector.status().shards
            return not shard.pending_deltas and shard.snapshot_offset == shard.offset

        eventually(is_complete, 30, lambda: str(inspector.status()))
        (shard,) = inspector.status().shards
        assert shard.accepted == shard.published == deltas
        state = inspector.state()
        assert state == inspector.folded()
        eventually(lambda: dict(replica) == state, message="the replica equals the full state")
        return state


# -- ready and stop ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "flush", "schedule"])
@pytest.mark.parametrize("number", SIGNALS)
def test_ready_until_a_signal(
    valkey: Server, namespace: str, start: NewProgram, command: str, number: signal.Signals
) -> None:
    """The complete, private ready file exists from readiness to the stop."""
    ready = start.directory / "ready"
    place = {"STATEBROKER_URL": valkey.url, "STATEBROKER_NAMESPACE": namespace}
    program = start(command, "--ready-file", str(ready), **place)
    eventually(ready.exists, START_SECONDS, lambda: program.err)
    assert ready.read_text() == valkey.url + "\n"
    assert stat.S_IMODE(ready.stat().st_mode) == 0o600
    # No waiting here: it said that all is up.
    assert status(valkey.url, namespace).protocol == PROTOCOL_VERSION
    if command != "schedule":
        assert roles(valkey.url, namespace)["flush"] == 1
        with (
            Replica(ready.read_text().strip(), namespace=namespace) as replica,
            Producer(valkey.url, namespace=namespace) as producer,
        ):
            producer.set("a", 1)
            replica.wait_for(producer.flush(5), 5)
    assert program.stop(number) < STOP_SECONDS
    assert [path.name for path in start.directory.iterdir() if "ready" in path.name] == []
    assert "Traceback" not in program.err


def test_a_ready_file_of_an_earlier_life_is_not_believed(
    own_server: OwnServer, namespace: str, start: NewProgram, tmp_path: Path
) -> None:
    """The ready file of a killed process is removed before the next one is ready."""
    server = own_server()
    place = {"STATEBROKER_URL": server.url, "STATEBROKER_NAMESPACE": namespace}
    ready = tmp_path / "ready"
    first = start("serve", "--ready-file", str(ready), **place)
    eventually(ready.exists, START_SECONDS)
    first.kill()
    assert ready.exists()
    server.pause()
    start("serve", "--ready-file", str(ready), **place)
    eventually(lambda: not ready.exists(), message="the old ready file is gone")
    server.resume()
    eventually(ready.exists, START_SECONDS)


@pytest.mark.slow
def test_a_stop_under_full_load_leaves_nothing_half_done(
    server: Server, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """Workers stop in time under full load; the next ones publish the rest."""
    number = SIGNALS[KINDS.index(server.kind) % len(SIGNALS)]
    workers = serve(server.url, namespace, "--global-data-update-interval", "100ms")
    names = ("one", "two")
    writers = [start.script(WRITER, server.url, namespace, name) for name in names]
    with Inspector(server.url, namespace=namespace) as inspector:

        def is_busy() -> bool:
            (shard,) = inspector.status().shards
            return bool(shard.published > 5_000 and shard.snapshot_offset > 1)

        eventually(is_busy, 30)
        assert workers.stop(number) < STOP_SECONDS
        assert "Traceback" not in workers.err
        eventually(lambda: inspector.status().shards[0].pending_deltas > 0)
    for writer in writers:
        writer.send_signal(signal.SIGTERM)
    # Redis takes what is written although nobody publishes it.
    reported = [writer.result() for writer in writers]
    serve(server.url, namespace, "--global-data-update-interval", "100ms")
    assert all(one.code == 0 for one in reported), reported
    written = [int(one.out.split('"written": ')[1].split(",")[0]) for one in reported]
    state = assert_complete(server.url, namespace, 2 * sum(written))
    assert state["n"] == sum(written)
    for name, count in zip(names, written, strict=True):
        last = {f"{name}.{n % 5000}": n for n in range(max(1, count - 4999), count + 1)}
        assert {key: value for key, value in state.items() if key.startswith(name)} == last


@pytest.mark.slow
def test_a_stop_while_the_full_state_is_being_written(
    valkey: Server, namespace: str, serve: Serve
) -> None:
    """A scheduler stops in time during a long write; another one takes over without loss."""
    keys = 400_000
    flusher = serve(valkey.url, namespace, command="flush")
    with Producer(valkey.url, namespace=namespace) as producer:
        for first in range(0, keys, 10_000):
            producer.set_many({f"key {n:09}": n for n in range(first, first + 10_000)})
        producer.flush(60)
    hash_name = ShardKeys.of(namespace, 0, 1).state
    with redis.Redis.from_url(valkey.url, protocol=2) as raw:
        eventually(lambda: status(valkey.url, namespace).shards[0].pending_deltas == 0, 30)
        scheduler = serve(valkey.url, namespace, command="schedule")
        eventually(lambda: raw.hlen(hash_name) > 0, 60)
        assert scheduler.stop() < STOP_SECONDS
        written: Any = raw.hlen(hash_name)
        logged: Any = raw.xrange(ShardKeys.of(namespace, 0, 1).log)
    (shard,) = status(valkey.url, namespace).shards
    # In portions, each whole: what the position says is there, is there.
    entries = [log_entry(fields) for _, fields in logged]
    batches = [decode_packet(entry.packet, entry.bulk) for entry in entries]
    assert sum(batch.deltas for batch in batches if isinstance(batch, Batch)) == keys
    assert written >= sum(
        batch.deltas
        for batch in batches
        if isinstance(batch, Batch) and batch.offset <= shard.snapshot_offset
    )
    assert shard.lease is None
    assert "Traceback" not in scheduler.err
    serve(valkey.url, namespace, command="schedule")
    assert len(assert_complete(valkey.url, namespace, keys)) == keys
    assert flusher.stop() < STOP_SECONDS


@pytest.mark.parametrize("command", ["serve", "flush", "schedule"])
def test_a_stop_while_the_server_hangs(
    own_server: OwnServer, namespace: str, serve: Serve, command: str
) -> None:
    """A worker stops in time also when Redis hangs."""
    server = own_server(port=0)
    beat = ("--heartbeat-interval", "50ms")
    write = ("--global-data-update-interval", "100ms")
    options = {"serve": (*beat, *write), "flush": beat, "schedule": write}[command]
    workers = serve(server.url, namespace, *options, command=command)
    if command != "schedule":
        await_listener(server)
    server.pause()
    try:
        parts = 2 if command == "serve" else 1
        eventually(lambda: unread(server) >= parts, message="it asks, and nobody answers")
        assert workers.stop() < STOP_SECONDS
    finally:
        server.resume()


def test_a_stop_while_it_starts(own_server: OwnServer, namespace: str, start: NewProgram) -> None:
    """A signal ends a worker in time while it waits for its server."""
    server = own_server(port=0)
    server.pause()
    try:
        place = {"STATEBROKER_URL": server.url, "STATEBROKER_NAMESPACE": namespace}
        program = start("serve", **place)
        eventually(lambda: unread(server), START_SECONDS, lambda: program.err)
        assert program.stop() < STOP_SECONDS
    finally:
        server.resume()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_it_at_once(
    own_server: OwnServer, namespace: str, serve: Serve, number: signal.Signals
) -> None:
    """A second signal ends the process at once."""
    server = own_server(port=0)
    workers = serve(server.url, namespace, "--heartbeat-interval", "50ms")
    await_listener(server)
    server.pause()
    try:
        eventually(lambda: unread(server), message="it asks, and nobody answers")
        before = sleeps(workers.pid)
        workers.send_signal(number)
        # It has seen the first one once it sleeps again.
        eventually(lambda: not workers.is_running or sleeps(workers.pid) > before)
        began = time.monotonic()
        workers.send_signal(number)
        workers.wait(20)
        # Much less than the 10 s for which it would wait for the reply.
        assert time.monotonic() - began < 5
    finally:
        server.resume()
    assert "Traceback" not in workers.err


def await_listener(server: Server) -> None:
    """Wait until the flush worker waits for wake-ups: what it sends from now on are its polls."""
    with redis.Redis.from_url(server.url, protocol=2) as raw:
        eventually(lambda: raw.info("clients")["blocked_clients"])


def unread(server: Server) -> int:
    """Return how many connections to a server's TCP port brought something it has not read."""
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(local.split(":")[1], 16) == server.port and int(queues.split(":")[1], 16) > 0
        for _, local, _, state, queues, *_ in connections
        if state == ESTABLISHED
    )


def sleeps(pid: int) -> int:
    """Return how often a process' main thread went to sleep of its own will."""
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = [one for one in text.splitlines() if one.startswith("voluntary_ctxt_switches")]
    return int(line.split()[1])


# -- helpers -------------------------------------------------------------------------------------


def helpers_of(workers: Program, count: int) -> set[int]:
    """Return the helpers once there are so many."""

    def found() -> set[int]:
        pids = {pid for pid in children(workers.pid) if "flush" in command_line(pid)}
        return pids if len(pids) == count else set()

    return eventually(found, 20, lambda: f"{count} helpers; stderr:\n{workers.err}")


def test_helpers_share_the_work_and_are_kept(valkey: Server, namespace: str, serve: Serve) -> None:
    """`--workers 3` runs three flush processes; one that is killed is started again; all stop."""
    workers = serve(valkey.url, namespace, "--workers", "3")
    first = helpers_of(workers, 2)
    eventually(lambda: roles(valkey.url, namespace) == {"flush": 3, "schedule": 1}, 20)
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not lives(victim))
    second = helpers_of(workers, 2)
    assert len(second - first) == 1
    eventually(lambda: "child_died" in workers.err, 20)
    eventually(lambda: len(status(valkey.url, namespace).workers) > 4, 20)
    eventually(lambda: roles(valkey.url, namespace) == {"flush": 3, "schedule": 1}, 20)
    with (
        Replica(valkey.url, namespace=namespace) as replica,
        Producer(valkey.url, namespace=namespace) as producer,
    ):
        producer.set_many({f"k{n}": n for n in range(1000)})
        replica.wait_for(producer.flush(5), 5)
        assert len(replica) == 1000
    assert workers.stop() < STOP_SECONDS
    assert not any(lives(pid) for pid in first | second)


def test_control_c_ends_helpers_too(valkey: Server, namespace: str, serve: Serve) -> None:
    """In a terminal all processes get the signal at once, and end silently with status 0."""
    workers = serve(valkey.url, namespace, "--workers", "3", is_leader=True)
    helpers = helpers_of(workers, 2)
    eventually(lambda: roles(valkey.url, namespace) == {"flush": 3, "schedule": 1}, 20)
    assert workers.stop(signal.SIGINT, whole_group=True) < STOP_SECONDS
    assert not any(lives(pid) for pid in helpers)
    for word in ("Traceback", "child_died", "Aborted"):
        assert word not in workers.err


def test_helpers_end_with_a_killed_parent(valkey: Server, namespace: str, serve: Serve) -> None:
    """After a SIGKILL of `serve` all its helpers end."""
    workers = serve(valkey.url, namespace, "--workers", "3")
    helpers = helpers_of(workers, 2)
    workers.kill()
    try:
        eventually(lambda: not any(lives(pid) for pid in helpers), 10, "the helpers are gone")
    finally:
        for pid in helpers:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_workers_that_are_gone_are_forgotten(valkey: Server, namespace: str, serve: Serve) -> None:
    """A worker that stopped in order leaves no record in Redis."""
    for _ in range(3):
        serve(valkey.url, namespace, command="flush").stop()
        serve(valkey.url, namespace, command="schedule").stop()
    assert status(valkey.url, namespace).workers == ()


# -- many ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_serve_at_once(valkey: Server, namespace: str, serve: Serve, start: NewProgram) -> None:
    """Two `serve` processes share a namespace; when either dies nothing is lost or doubled."""
    options = ("--global-data-update-interval", "200ms", "--workers", "2")
    first, second = (serve(valkey.url, namespace, *options) for _ in range(2))
    writer = start.script(WRITER, valkey.url, namespace, "writer")
    eventually(lambda: roles(valkey.url, namespace) == {"flush": 4, "schedule": 2}, 20)
    helpers = helpers_of(first, 1)
    first.kill()
    for pid in helpers:
        if lives(pid):
            os.kill(pid, signal.SIGKILL)
    third = serve(valkey.url, namespace, *options)
    assert second.stop() < STOP_SECONDS
    writer.send_signal(signal.SIGTERM)
    reported = writer.result()
    assert reported.code == 0, reported.err
    written = int(reported.out.split('"written": ')[1].split(",")[0])
    state = assert_complete(valkey.url, namespace, 2 * written)
    assert state["n"] == written
    assert third.stop() < STOP_SECONDS


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_standby_scheduler_takes_over(
    valkey: Server,
    namespace: str,
    serve: Serve,
    is_killed: bool,  # noqa: FBT001
) -> None:
    """A killed lease holder is replaced after the lease, a stopped one at once."""
    serve(valkey.url, namespace, command="flush")
    interval = ("--global-data-update-interval", "1s")
    schedulers = [serve(valkey.url, namespace, *interval, command="schedule") for _ in range(2)]
    with (
        holding(valkey.url, namespace) as holder,
        Producer(valkey.url, namespace=namespace) as producer,
        Inspector(valkey.url, namespace=namespace) as inspector,
    ):
        name = eventually(holder) or ""
        (active,) = [one for one in schedulers if f"-{one.pid}-" in name]
        (standby,) = [one for one in schedulers if one is not active]
        producer.set("before", 1)
        producer.flush(5)
        eventually(lambda: "before" in inspector.state())
        if is_killed:
            active.kill()
        else:
            active.stop()
        began = time.monotonic()
        producer.set("after", 2)
        producer.flush(5)
        eventually(lambda: "after" in inspector.state(), 30, lambda: standby.err)
        took = time.monotonic() - began
        assert f"-{standby.pid}-" in (holder() or "")
        assert inspector.status().shards[0].fence == 2
    # Less than the lease, which nobody waited for.
    assert took < (TAKE_OVER_SECONDS if is_killed else 5.0)


# -- secrets -------------------------------------------------------------------------------------


def test_a_password_is_nowhere_to_be_read(
    own_server: OwnServer, namespace: str, serve: Serve, tmp_path: Path
) -> None:
    """No command line, log or error shows the password; the ready file is private."""
    server = own_server(port=0, password="s3cret-word")
    mark = f"mark-{namespace}"
    workers = serve(
        server.url,
        namespace,
        "--workers",
        "2",
        "--verbose",
        "--heartbeat-interval",
        "50ms",
        MARK=mark,
    )
    eventually(lambda: roles(server.url, namespace) == {"flush": 2, "schedule": 1}, 20)
    family = marked(mark)
    assert {workers.pid, *helpers_of(workers, 1)} <= set(family)
    assert not any("s3cret" in command_line(pid) for pid in family)
    with Producer(server.url, namespace=namespace) as producer:

        def is_told() -> bool:
            # Either of the two may publish it; only one of them was told to be verbose.
            producer.increment("n")
            producer.flush(5)
            return "batch_published" in workers.err

        eventually(is_told)
    # Now the server is gone, then it is one that does not know the password.
    server.kill()
    eventually(lambda: "cannot reach" in workers.err, 20)
    server.password = "another"
    server.start()
    eventually(lambda: "password" in workers.err, 20, lambda: workers.err)
    assert workers.stop() < STOP_SECONDS
    assert "Traceback" not in workers.err
    assert "s3cret" not in workers.err + workers.out
    files = [path for path in tmp_path.iterdir() if "s3cret" in path.read_text(errors="replace")]
    assert files == []


@pytest.mark.parametrize("end", [Program.stop, Program.kill])
def test_embedded_workers_take_everything_with_them(
    tmp_path: Path, namespace: str, serve: Serve, end: Callable[[Program], object]
) -> None:
    """`serve` on embedded:// ends server and keeper with itself, also when killed."""
    mark = f"mark-{namespace}"
    workers = serve("embedded://", namespace, MARK=mark)
    url = (tmp_path / "ready1").read_text().strip()
    with (
        Producer(url, namespace=namespace) as producer,
        Replica(url, namespace=namespace) as replica,
    ):
        producer.set("a", 1)
        replica.wait_for(producer.flush(5), 5)
    # The server itself writes over its environment.
    family = {*marked(mark), *(child for pid in marked(mark) for child in children(pid))}
    assert any("valkey-server" in command_line(pid) for pid in family)
    end(workers)
    eventually(
        lambda: not any(lives(pid) for pid in family),
        message=lambda: str([command_line(pid) for pid in family]),
    )
    assert not Path(url.removeprefix("unix://")).parent.exists()
