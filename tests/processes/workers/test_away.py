"""Workers wait for a missing server, and end at once where waiting cannot help."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest

from broker import Inspector, Producer, Replica
from broker.backend.commands import source
from broker.testing import FaultProxy
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, Run, Serve
from tests.processes.programs import (
    START_SECONDS,
    STOP_SECONDS,
    Program,
    children,
    command_line,
    needs_proc,
)

pytestmark = needs_proc


def waits(program: Program) -> None:
    """Wait until it has logged that the server is away."""
    eventually(lambda: "server_away" in program.err, START_SECONDS, lambda: program.err)


@pytest.mark.parametrize("command", ["serve", "flush", "schedule"])
def test_a_worker_waits_for_its_server(
    own_server: OwnServer, namespace: str, start: NewProgram, command: str
) -> None:
    """A worker logs that it waits, and is ready only once its server is up."""
    server = own_server(port=0)
    place = {"STATEBROKER_URL": server.url, "STATEBROKER_NAMESPACE": namespace}
    server.kill()
    ready = start.directory / "ready"
    program = start(command, "--ready-file", str(ready), **place)
    waits(program)
    assert not ready.exists()
    assert f"cannot reach {server.url}" in program.err
    server.start()
    eventually(ready.exists, START_SECONDS, lambda: program.err)
    with Inspector(server.url, namespace=namespace) as inspector:
        role = "schedule" if command == "schedule" else "flush"
        eventually(lambda: role in {one.role for one in inspector.status().workers})
    if command == "serve":
        with (
            Replica(server.url, namespace=namespace) as replica,
            Producer(server.url, namespace=namespace) as producer,
        ):
            producer.set("a", 1)
            replica.wait_for(producer.flush(5), 5)
    assert program.stop() < STOP_SECONDS
    assert "Traceback" not in program.err


@pytest.mark.parametrize("command", ["serve", "flush", "schedule"])
def test_a_worker_that_waits_stops_at_once(
    own_server: OwnServer, namespace: str, start: NewProgram, command: str
) -> None:
    """A signal ends the wait between two attempts with status 0."""
    server = own_server(port=0)
    server.kill()
    place = {"STATEBROKER_URL": server.url, "STATEBROKER_NAMESPACE": namespace}
    program = start(command, **place)
    waits(program)
    assert program.stop() < STOP_SECONDS
    assert "Traceback" not in program.err


NO_NAMES = """
import socket, sys, threading

def hang(host, *rest):
    print("asked for", host, file=sys.stderr, flush=True)
    threading.Event().wait()

socket.getaddrinfo = hang
from workers.__main__ import main
main()
"""


def test_a_worker_stops_at_once_while_a_name_is_looked_up(start: NewProgram) -> None:
    """A worker stops in time also while a name look-up takes 20 seconds."""
    program = start.script(NO_NAMES, "serve", STATEBROKER_URL="redis://nowhere.example:6379")
    eventually(lambda: "asked for nowhere" in program.err, START_SECONDS, lambda: program.err)
    assert program.stop() < STOP_SECONDS
    assert "Traceback" not in program.err


def test_a_link_that_breaks_while_a_worker_starts_is_waited_for(
    valkey: Server, namespace: str, start: NewProgram
) -> None:
    """A worker that cannot write its first heartbeat is not ready."""
    first = hashlib.sha1(source("heartbeat").encode()).hexdigest()  # noqa: S324 - as Redis does
    with FaultProxy(valkey.url) as proxy:
        proxy.faults.lose_replies("EVALSHA", times=1000, containing=first.encode())
        place = {"STATEBROKER_URL": proxy.url, "STATEBROKER_NAMESPACE": namespace}
        ready = start.directory / "ready"
        program = start("serve", "--ready-file", str(ready), **place)
        waits(program)
        assert not ready.exists()
        proxy.heal()
        eventually(ready.exists, START_SECONDS, lambda: program.err)
        assert program.stop() < STOP_SECONDS


@pytest.mark.parametrize("command", ["serve", "flush", "schedule"])
def test_what_does_not_pass_by_itself_ends_it(
    own_server: OwnServer, namespace: str, run: Run, command: str
) -> None:
    """Wrong URL, password, shard count or server: status 1 or 2, one clear error, no waiting."""
    server = own_server(port=0, password="right")
    Producer(server.url, namespace=namespace, shards=2).close()
    place = {"STATEBROKER_NAMESPACE": namespace, "STATEBROKER_URL": server.url}
    wrong = {
        "refuses the password": {
            "STATEBROKER_URL": f"redis://:wrong@127.0.0.1:{server.port}",
        },
        "no known scheme": {"STATEBROKER_URL": "http://127.0.0.1:1"},
        "cannot be read": {"STATEBROKER_URL": "redis://127.0.0.1:port"},
        "was made with 2 shards": {"STATEBROKER_SHARDS": "3"},
    }
    for reported, settings in wrong.items():
        ended = run(command, **(place | settings))
        assert ended.code in {1, 2}
        assert reported in ended.err
        assert "server_away" not in ended.err
        assert "Traceback" not in ended.err


def test_an_unfit_server_ends_it(own_server: OwnServer, namespace: str, run: Run) -> None:
    """A server that may evict keys is an error, and not waited for."""
    server = own_server("--maxmemory-policy", "allkeys-lru")
    ended = run("serve", STATEBROKER_URL=server.url, STATEBROKER_NAMESPACE=namespace)
    assert ended.code == 1
    assert "noeviction" in ended.err
    assert "server_away" not in ended.err


@pytest.mark.parametrize("options", [(), ("--verbose",)])
def test_helpers_are_as_verbose_as_their_parent(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, options: tuple[str, ...]
) -> None:
    """`--verbose` applies to every process; a settings file in the folder to none."""
    workers = serve(valkey.url, namespace, "--workers", "2", *options)

    def helpers() -> list[int]:
        return [pid for pid in children(workers.pid) if "flush" in command_line(pid)]

    def flushers() -> set[str]:
        with Inspector(valkey.url, namespace=namespace) as inspector:
            reported = inspector.status().workers
        return {one.worker for one in reported if one.role == "flush"}

    eventually(lambda: len(flushers()) == 2, START_SECONDS, lambda: workers.err)
    (first,) = helpers()
    assert ("--verbose" in command_line(first)) == bool(options)
    # A helper that read it would end there.
    (start.directory / "statebroker.toml").write_text("nonsense = 1\n")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(flushers()) == 3, START_SECONDS, lambda: workers.err)
    eventually(lambda: workers.err.count("child_died") == 1, 20)
    assert first not in helpers()
