"""Health in `status`, and commands whose server fails: clear messages, no traceback."""

from __future__ import annotations

import json
import math
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker.runtime.outage_log import SHORT_S
from broker.testing import FaultProxy
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, NewServed, Run, Serve
from tests.processes.programs import Result
from tests.processes.served_namespace import ServedNamespace

COMMANDS = (
    ("get", "a"),
    ("set", "a", "1"),
    ("increment", "a"),
    ("delete", "a"),
    ("watch", "--count", "1"),
    ("status",),
    ("status", "--check", "--json"),
    ("verify",),
)


# -- health --------------------------------------------------------------------------------------


def test_status_shows_red_and_green(
    own_server: OwnServer, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """A worker whose packets get lost is red in table, JSON and exit status until it recovers."""
    server = own_server(port=0)
    with FaultProxy(server.url) as proxy:
        workers = serve(proxy.url, namespace, "--heartbeat-interval", "500ms")
        place = ServedNamespace(server.url, namespace, workers, start)

        def reported(color: str) -> dict[str, dict[str, Any]] | None:
            ended = place.run("status", "--json")
            assert ended.code == 0, "only --check makes it the exit status"
            workers = {one["role"]: one for one in json.loads(ended.out)["workers"]}
            return workers if workers["flush"]["health"] == color else None

        assert eventually(lambda: reported("green"), 20)["schedule"]["health"] == "green"
        assert place.run("status", "--check").code == 0
        proxy.faults.drop_messages = 1.0
        red = eventually(lambda: reported("red"), 20)
        reason = "shard 0: nothing arrived on its channel for over 1.5 s"
        assert red["flush"]["reason"] == reason
        assert (red["schedule"]["health"], red["schedule"]["reason"]) == ("green", "")
        checked = place.run("status", "--check")
        assert checked.code == 1
        assert f"red: {reason}" in checked.out
        assert checked.err == f"statebroker: {red['flush']['worker']} is red: {reason}\n"
        proxy.faults.drop_messages = 0.0
        eventually(lambda: reported("green"), 20)
        assert place.run("status", "--check").code == 0
    eventually(lambda: workers.err.count("health_green") == 1, 20)
    assert workers.err.count("health_red") == 1


def test_each_role_has_its_own_check(
    valkey: Server, namespace: str, run: Run, serve: Serve
) -> None:
    """`--check --role` judges one role: with no flush worker only a scheduler can do its work."""

    def check(*options: str) -> Result:
        place = {"STATEBROKER_URL": valkey.url, "STATEBROKER_NAMESPACE": namespace}
        return run("status", "--check", *options, **place)

    scheduler = serve(valkey.url, namespace, command="schedule")
    healthy = check("--role", "schedule", "--here")
    assert (healthy.code, healthy.out, healthy.err) == (0, "", "")
    missing = check("--role", "flush")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err.startswith("statebroker: no live flush worker; start ")
    subscriber = check("--role", "subscriber")
    assert subscriber.code == 1
    assert "a replica that joined was not live after 5 s" in subscriber.err
    flusher = serve(valkey.url, namespace, command="flush")
    eventually(lambda: check("--role", "flush", "--here").code == 0, 20)
    both = check(*("--role", "producer", "--role", "subscriber"))
    assert (both.code, both.out, both.err) == (0, "", "")
    flusher.stop()
    scheduler.stop()
    assert check("--role", "schedule").code == 1


def test_options_that_say_nothing_together_are_refused(run: Run) -> None:
    """`--role` without `--check`, `--here` without a worker's role: status 2, and what to add."""
    for options, fix in (
        (("--role", "flush"), "give --check too"),
        (("--check", "--here"), "give --role flush or --role schedule too"),
        (("--check", "--role", "flusher"), "'flush', 'schedule', 'producer', 'subscriber'"),
    ):
        refused = run("status", *options, STATEBROKER_URL="redis://127.0.0.1:1")
        assert (refused.code, refused.out) == (2, "")
        assert fix in refused.err, refused.err


# -- numbers that JSON has not -------------------------------------------------------------------


def strict(ended: Result) -> Any:
    """Read one line of JSON as strict parsers do."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert ended.code == 0, ended
    return json.loads(ended.out, parse_constant=refuse)


@pytest.mark.slow
def test_json_is_json_whatever_the_numbers(new_served: NewServed) -> None:
    """NaN and the infinities are printed as text, at every depth, by every command."""
    place = new_served()
    place.write("set", "nan", "NaN", "list", "[Infinity, [-Infinity, 1.5]]", "map", '{"a": NaN}')
    expected = {"nan": "NaN", "list": ["Infinity", ["-Infinity", 1.5]], "map": {"a": "NaN"}}
    assert strict(place.run("get", "--json")) == expected
    assert place.run("get", "nan").out == '"NaN"\n'
    for command in (("status", "--json"), ("verify", "--json")):
        strict(place.run(*command))
    with place.producer() as producer:
        producer.set("also", (math.inf, b"\x00"))
    place.publish()
    assert strict(place.run("get", "--json", "also")) == {"also": ["Infinity", {"base64": "AA=="}]}


# -- servers that fail ---------------------------------------------------------------------------


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """Return the URL of a port that gives a fixed answer to any request, then disconnects."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if reply:
                self.request.recv(10)
                self.request.sendall(reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def assert_clear(ended: Result, command: tuple[str, ...]) -> None:
    """Check for one line with the fault, no traceback, no warning, and empty stdout."""
    assert ended.code == 1, (command, ended)
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("Error: "), line


@pytest.mark.slow
@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$10\r\nabc"])
def test_a_port_where_no_redis_answers(run: Run, reply: bytes) -> None:
    """A server that disconnects, speaks another protocol or stops in a reply is reported."""
    with answering(reply) as url:
        for command in COMMANDS:
            assert_clear(run(*command, STATEBROKER_URL=url, PYTHONWARNINGS="default"), command)


@pytest.mark.slow
def test_a_port_where_nobody_listens_and_a_wrong_password(own_server: OwnServer, run: Run) -> None:
    """The two most common mistakes have clear messages."""
    server = own_server(port=0, password="right")
    for url in ("redis://127.0.0.1:1/0", f"redis://:wrong@127.0.0.1:{server.port}"):
        for command in COMMANDS:
            assert_clear(run(*command, STATEBROKER_URL=url, PYTHONWARNINGS="default"), command)


def test_watch_tells_people_that_the_server_is_away(
    own_server: OwnServer, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """The loss is logged once; the process resumes with the server, and ends with status 0."""
    server = own_server(port=0)
    workers = serve(server.url, namespace)
    place = ServedNamespace(server.url, namespace, workers, start)
    place.write("set", "a", "1")
    watch = place.start("watch", "--initial", PYTHONWARNINGS="default")
    eventually(lambda: "a\t1" in watch.out, 20, lambda: watch.err)
    server.kill()
    eventually(lambda: "subscription_lost" in watch.err and "poll_failed" in workers.err, 20)
    # The end of a shorter outage is not worth a line.
    failed_at = time.monotonic()
    eventually(lambda: time.monotonic() > failed_at + 2 * SHORT_S, 20)
    server.start()
    assert place.run("set", "b", "2").code == 0
    eventually(lambda: "b\t2" in watch.out, 30, lambda: watch.err)
    eventually(lambda: "poll_failed_ended" in workers.err, 20)
    watch.stop()
    assert "Traceback" not in watch.err
    reported = watch.err.splitlines()
    assert all(line.startswith("statebroker: ") for line in reported), reported
    lost = [line for line in reported if "subscription_lost " in line]
    assert len(lost) == 1, reported
    assert "cannot reach" in lost[0]


def test_worker_logs_are_not_for_people(valkey: Server, namespace: str, serve: Serve) -> None:
    """A worker's lines have their time and level, as a log needs them."""
    workers = serve(valkey.url, namespace)
    eventually(lambda: " INFO workers.serve serving " in workers.err)
    assert "statebroker: " not in workers.err
