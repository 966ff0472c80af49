"""`statebroker watch`, and closing an iteration from a signal handler."""

from __future__ import annotations

import itertools
import json
import signal

import pytest
import redis

from broker.protocol.names import shard_of
from broker.testing.waiting import eventually
from tests.processes.conftest import NewProgram, NewServed
from tests.processes.programs import STOP_SECONDS, Program
from tests.processes.served_namespace import writing

# The handler runs in the thread that reads, between any two of its steps: a few thousand times, and
# without the wait between two steps, which is where it nearly always would hit.
CLOSE_BY_SIGNAL = '''
import faulthandler, signal, sys
from broker import Replica

class Spin:
    """Never blocks, so that the signal finds the reader in the middle of taking."""

    def wait(self):
        pass

    def ring(self):
        pass


faulthandler.dump_traceback_later(20, exit=True)
with Replica(sys.argv[1], namespace=sys.argv[2]) as replica:
    for _ in range(2000):
        changes = replica.changes()
        changes._bell = Spin()
        signal.signal(signal.SIGALRM, lambda *_: changes.close())
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        for change in changes:
            pass
print("done")
'''


def lines(program: Program) -> list[str]:
    """Return the whole lines that a program printed so far."""
    return [line for line in program.out.splitlines(keepends=True) if line.endswith("\n")]


def test_watch_prints_what_there_is_and_what_changes(new_served: NewServed) -> None:
    """--initial, --prefix, --count and --json work as described in their help."""
    place = new_served()
    place.write("set", "a.1", "1", "a.2", "[2]", "b.1", "true")
    watch = place.start("watch", "--initial", "--prefix", "a.", "--count", "3", "--json")
    eventually(lambda: len(lines(watch)) == 2, 20, lambda: watch.err)
    place.write("set", "b.1", "false", "a.1", "5")
    place.write("increment", "a.1", "2")
    place.write("delete", "a.2")
    assert watch.wait() == 0
    reported = [json.loads(line) for line in watch.out.splitlines()]
    assert [(one["operation"], one["key"], one["value"]) for one in reported] == [
        ("set", "a.1", 1),
        ("set", "a.2", [2]),
        ("set", "a.1", 5),
        ("increment", "a.1", 7),
        ("delete", "a.2", None),
    ]
    offsets = [one["offset"] for one in reported]
    assert offsets == sorted(offsets)
    assert not any(one["resync"] for one in reported)
    assert all(one["timestamp_ms"] > 0 for one in reported[2:])


def test_watch_tells_each_keys_own_shard(new_served: NewServed) -> None:
    """With several shards the initial content names its shard too."""
    place = new_served("--shards", "4")
    keys = [f"k{n}" for n in range(12)]
    place.write("set", *itertools.chain(*((key, "0") for key in keys)))
    watch = place.start("watch", "--initial", "--json", "--count", "12")
    eventually(lambda: len(lines(watch)) == 12, 20, lambda: watch.err)
    place.write("set", *itertools.chain(*((key, "1") for key in keys)))
    assert watch.wait() == 0
    reported = [json.loads(line) for line in watch.out.splitlines()]
    assert len(reported) == 24
    assert [(one["key"], one["shard"]) for one in reported] == [
        (one["key"], shard_of(one["key"], 4)) for one in reported
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_busy", [False, True])
def test_watch_ends_quietly(new_served: NewServed, number: signal.Signals, is_busy: bool) -> None:  # noqa: FBT001
    """Ctrl-C ends `watch` silently with status 0, also under many changes."""
    place = new_served("--local-delta-max-age", "1ms")
    watch = place.start("watch")
    with writing(place) if is_busy else place.producer() as producer:
        # It may start to watch after any one of these.
        for n in itertools.count():
            if watch.out or not watch.is_running:
                break
            producer.set("first", n)
            place.publish()
        assert watch.stop(number) < STOP_SECONDS
    assert watch.err == ""
    assert "\tset\t" in watch.out


def test_watch_says_when_its_status_changes(new_served: NewServed) -> None:
    """Status changes after the first `live` go to stderr with reason; closing is not one."""
    place = new_served()
    watch = place.start("watch")
    with place.producer() as producer, redis.Redis.from_url(place.url, protocol=2) as raw:
        for n in itertools.count():
            if watch.out or not watch.is_running:
                break
            producer.set("first", n)
            place.publish()
        assert watch.err == ""
        raw.client_kill_filter(_type="pubsub")
        eventually(lambda: "-> live" in watch.err, 20, lambda: watch.err)
    assert watch.stop() < STOP_SECONDS
    reported = [line for line in watch.err.splitlines() if " -> " in line]
    assert reported == [
        "statebroker: live -> stale (lost in shard 0)",
        "statebroker: stale -> catching_up (subscribed in shard 0)",
        "statebroker: catching_up -> live (caught_up in shard 0)",
    ]


def test_closing_changes_in_a_signal_handler_never_hangs(
    new_served: NewServed, start: NewProgram
) -> None:
    """Ctrl-C at any moment of an iteration ends it, also while it takes changes."""
    place = new_served()
    result = start.script(CLOSE_BY_SIGNAL, place.url, place.namespace).result(60)
    assert (result.code, result.out) == (0, "done\n"), result.err
