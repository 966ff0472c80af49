"""The commands of `statebroker`: content, status, verify."""

from __future__ import annotations

import base64
import itertools
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import Inspector, Producer, Replica
from broker.protocol.digest import range_of
from broker.protocol.fields import pack_field
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.processes.conftest import NewProgram, NewServed, Serve
from tests.processes.programs import Result
from tests.processes.served_namespace import ServedNamespace, writing

# What was given on the command line, and what JSON says it is.
PAIRS = {
    "null": ("null", None),
    "true": ("true", True),
    "false": ("false", False),
    "int": ("-12", -12),
    "most": ("18446744073709551615", 2**64 - 1),
    "least": ("-9223372036854775808", -(2**63)),
    "float": ("0.1", 0.1),
    "whole": ("3.0", 3.0),
    "quoted": ('"a b"', "a b"),
    "number in quotes": ('"42"', "42"),
    "bare": ("on the way", "on the way"),
    "empty": ("", ""),
    "unicode": ("größer 👩‍🚀", "größer 👩‍🚀"),
    "list": ('[1, [2.5, null], "x"]', [1, [2.5, None], "x"]),
    "map": ('{"a": {"b": [true]}}', {"a": {"b": [True]}}),
    "half": ('{"a": ', '{"a": '),
}


# -- content -------------------------------------------------------------------------------------


def test_values_of_each_json_type_come_back(new_served: NewServed) -> None:
    """What `set` is given as JSON or text, `get` prints as JSON of the same type."""
    place = new_served()
    pairs = itertools.chain(*((key, text) for key, (text, _) in PAIRS.items()))
    place.write("set", "--", *pairs)
    expected = {key: value for key, (_, value) in PAIRS.items()}

    everything = place.run("get", "--json").json
    assert everything == expected
    # 1 == True and 3 == 3.0 in Python; their JSON differs.
    assert {key: json.dumps(value) for key, value in everything.items()} == {
        key: json.dumps(value) for key, value in expected.items()
    }
    assert place.run("get", "--json", "map", "int").json == {
        "map": {"a": {"b": [True]}},
        "int": -12,
    }

    human = place.run("get")
    assert human.code == 0
    assert human.out.splitlines() == [
        f"{key}\t{json.dumps(value, ensure_ascii=False)}" for key, value in sorted(expected.items())
    ]
    assert place.run("get", "unicode").out == '"größer 👩‍🚀"\n'
    assert place.run("get", "whole", "true").out == "whole\t3.0\ntrue\ttrue\n"


def test_negative_numbers_are_values_and_not_options(new_served: NewServed) -> None:
    """`set KEY -5` sets a number, as it does in `increment`."""
    place = new_served()
    place.write("set", "--json", "a", "-5", "b", "-0.5")
    assert place.run("get", "--json").json == {"a": -5, "b": -0.5}


def test_bytes_and_times_are_printed_as_json(new_served: NewServed) -> None:
    """Values without a JSON type are printed in a form that scripts can read back."""
    place, moment = new_served(), datetime(2013, 1, 1, 5, 15, tzinfo=UTC)
    with place.producer() as producer:
        producer.set("bytes", b"\x00\xff")
        producer.set("deep", [{"at": moment}])
    place.publish()
    reported = place.run("get", "--json").json
    assert base64.b64decode(reported["bytes"]["base64"]) == b"\x00\xff"
    assert datetime.fromisoformat(reported["deep"][0]["at"]) == moment


def test_an_absent_key_is_exit_status_1(new_served: NewServed) -> None:
    """`get` names the absent keys, prints the others, and exits with 1."""
    place = new_served()
    place.write("set", "a", "1", "none", "null")
    absent = place.run("get", "zz")
    assert (absent.code, absent.out) == (1, "")
    assert absent.err == "statebroker: 'zz' is absent\n"
    some = place.run("get", "--json", "a", "zz", "none")
    assert some.code == 1
    assert json.loads(some.out) == {"a": 1, "none": None}
    assert "'zz'" in some.err


def test_set_says_what_is_wrong_and_writes_nothing(new_served: NewServed) -> None:
    """Wrong arguments of `set` are reported and nothing is written."""
    place = new_served()
    odd = place.run("set", "a", "1", "b")
    assert odd.code == 2
    assert "'b' has no value" in odd.err
    for arguments, reported in [
        (("a", "1", "", "2"), "key is empty"),
        (("a", "1", "k" * 1025, "2"), "limit of 1024"),
        (("a", "18446744073709551616"), "18446744073709551615"),
    ]:
        wrong = place.run("set", *arguments)
        assert wrong.code == 1, wrong
        assert reported in wrong.err
        assert len(wrong.err.splitlines()) == 1
    assert place.run("set").code == 2
    assert place.run("get", "--json").json == {}


@pytest.mark.slow
def test_increment_and_delete(new_served: NewServed) -> None:
    """Amounts may be left out, negative or fractions; deleting takes any number of keys."""
    place = new_served()
    assert place.write("increment", "n").out == ""
    place.write("increment", "n", "-5")
    reported = place.write("increment", "--json", "n", "2.5").json
    assert reported["deltas"] == 1
    assert place.run("get", "n").out == "-1.5\n"
    place.write("increment", "--", "m", "-7")
    place.write("set", "text", "abc")
    for amount in ("abc", "true"):
        wrong = place.run("increment", "n", amount)
        assert (wrong.code, len(wrong.err.splitlines())) == (1, 1), wrong
        assert "number" in wrong.err
    # Where there is no number, replicas and full state refuse alike.
    refused = place.run("increment", "text")
    assert (refused.code, refused.out) == (1, "")
    assert (
        refused.err == "statebroker: 'text' holds \"abc\", which is no number; nothing was added\n"
    )
    # The set before counts, also while it is pending.
    assert place.run("set", "once", "abc").code == place.run("set", "once", "5").code == 0
    assert place.run("increment", "once").code == 0
    place.write("delete", "once")
    assert place.run("get", "--json").json == {"n": -1.5, "m": -7, "text": "abc"}
    place.write("delete", "n", "text", "never there")
    assert place.run("get", "--json").json == {"m": -7}


def test_a_token_on_the_command_line_is_one_in_the_api(new_served: NewServed) -> None:
    """What a script got from `set --json` a service can wait for."""
    place = new_served()
    with Replica(place.url, namespace=place.namespace) as replica:
        reported = place.run("set", "--json", "a", "1", "b", "2").json
        assert reported["deltas"] == 2
        replica.wait_for(reported["token"], 10)
        assert dict(replica) == {"a": 1, "b": 2}


# -- status --------------------------------------------------------------------------------------


def test_status_tells_shards_nodes_and_workers(new_served: NewServed) -> None:
    """`status --json` has the numbers that add up; the table shows them to people."""
    place = new_served("--shards", "2")
    with Producer(place.url, namespace=place.namespace, node="writer") as producer:
        producer.set_many({f"k{n}": n for n in range(100)})
        producer.flush(10)
        place.publish()
        reported = place.run("status", "--json").json
        human = place.run("status")
    assert (reported["namespace"], reported["protocol"]) == (place.namespace, 3)
    assert reported["server"]["name"] == "valkey"
    assert [shard["shard"] for shard in reported["shards"]] == [0, 1]
    assert sum(shard["accepted"] for shard in reported["shards"]) == 100
    for shard in reported["shards"]:
        assert shard["published"] == shard["accepted"]
        assert shard["pending_deltas"] == shard["pending_chunks"] == shard["pending_bytes"] == 0
        assert shard["batches"] == shard["by_count"] + shard["by_age"] == shard["offset"] > 0
        assert shard["log_entries"] >= 1
        assert shard["bytes_published"] >= shard["log_bytes"] > 0
        assert shard["lease"].startswith("schedule-")
    assert reported["nodes"] == [
        {
            "node": "writer",
            "chunks": 2,
            "deltas": 100,
            "pending_deltas": 0,
            "idle_ms": None,
        },
    ]
    assert {worker["role"] for worker in reported["workers"]} == {"flush", "schedule"}
    assert reported["replica"]["status"] == "live"
    assert reported["replica"]["lag_s"] < 5
    assert human.code == 0, human.err
    for word in (place.namespace, "valkey", "live", "writer", "flush-", "schedule-", "lease"):
        assert word in human.out


def test_status_check_is_for_monitoring(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """`status --check` exits with 1 and names the missing role, unless both roles are alive."""
    flusher = serve(valkey.url, namespace, command="flush")
    place = ServedNamespace(valkey.url, namespace, flusher, start)
    half = place.run("status", "--check", "--json")
    assert half.code == 1
    assert "schedule" in half.err
    assert "flush" not in half.err.replace("statebroker serve", "")
    assert place.run("status", "--check", "--role", "flush", "--role", "subscriber").code == 0
    alone = place.run("status", "--check", "--role", "schedule")
    assert (alone.code, "no live schedule worker" in alone.err) == (1, True)
    scheduler = serve(valkey.url, namespace, command="schedule")
    whole = place.run("status", "--check")
    assert (whole.code, whole.err) == (0, "")
    scheduler.stop()
    assert place.run("status", "--check", "--json").code == 1


@pytest.mark.slow
def test_status_check_notices_that_all_workers_stopped(new_served: NewServed) -> None:
    """Workers that stopped in order do not count as running."""
    place = new_served("--workers", "2")
    eventually(lambda: len(roles(place)) == 3, 20)
    place.workers.stop()
    nobody = place.run("status", "--check", "--json")
    assert nobody.code == 1
    assert "flush" in nobody.err
    assert "schedule" in nobody.err
    assert json.loads(nobody.out)["workers"] == []


def roles(place: ServedNamespace) -> list[str]:
    """Return the roles of the listed workers."""
    with Inspector(place.url, namespace=place.namespace) as inspector:
        return [worker.role for worker in inspector.status().workers]


# -- verify --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_says_equal_while_writing_goes_on(new_served: NewServed) -> None:
    """Both sides are brought to one position, so a busy system verifies as a quiet one does."""
    place = new_served("--global-data-update-interval", "0.1", "--shards", "2")
    with writing(place) as producer:
        producer.set_many({f"more{n}": n for n in range(500)})
        producer.flush(10)
        place.publish()
        for _ in range(3):
            reported = place.run("verify", "--json").json
            assert reported.pop("bytes_read") > 0
            assert reported == {
                "equal": True,
                "keys": 550,
                "shards": 2,
                "differences": [],
                "differing": 0,
                "differing_ranges": 0,
                "altered": [],
                "damaged": [],
                "removed": [],
            }
    human = place.run("verify")
    assert (human.code, human.out) == (0, "equal: 550 keys in 2 shards\n")


@pytest.mark.slow
def test_verify_prints_the_first_differences(new_served: NewServed) -> None:
    """If replica and history differ, it prints the keys and both values, and exits with 1."""
    place = new_served("--global-data-update-interval", "0.1")
    keys = [f"k{n:02}" for n in range(100)]
    with place.producer() as producer:
        producer.set_many(dict.fromkeys(keys, 0))
    place.publish()
    with Inspector(place.url, namespace=place.namespace) as inspector:
        eventually(lambda: len(inspector.state()) == len(keys))
    with falsifying(place, keys):
        reported = place.run("verify", "--json", "--show", "3")
        human = place.run("verify", "--show", "2")
    assert reported.code == human.code == 1
    found: dict[str, Any] = json.loads(reported.out)
    assert found["equal"] is False
    assert (found["keys"], len(found["differences"])) == (100, 3)
    assert found["differing"] > 10
    for one in found["differences"]:
        assert (one["key"] in keys, one["shard"], one["offset"]) == (True, 0, 1)
        assert one["replica"] != one["history"]
    examples = [line for line in human.out.splitlines() if line.startswith("shard 0 at offset 1")]
    assert len(examples) == 2
    assert all('"k' in line and ": replica " in line for line in examples)
    assert human.out.endswith(" of 100 keys differ\n")


@pytest.mark.slow
def test_verify_finds_a_full_state_that_was_altered(new_served: NewServed) -> None:
    """What no scheduler wrote is found by its key range, and accepted once it is right again."""
    place = new_served("--global-data-update-interval", "0.1")
    place.write("set", "a", "1", "b", "2")
    with Inspector(place.url, namespace=place.namespace) as inspector:
        eventually(lambda: inspector.state() == {"a": 1, "b": 2})
    with redis.Redis.from_url(place.url, protocol=2) as client:
        client.hset(ShardKeys.of(place.namespace, 0, 1).state, "a", pack_field("a", 1, 99))
    reported = place.run("verify", "--json")
    assert reported.code == 1
    found = json.loads(reported.out)
    assert (found["equal"], found["differing"], found["differing_ranges"]) == (False, 0, 1)
    assert found["altered"] == [{"shard": 0, "range": range_of("a"), "keys": ["a"]}]
    human = place.run("verify")
    assert human.code == 1
    assert 'of the full state is not what schedulers wrote; its 1 keys: "a"\n' in human.out
    assert human.out.endswith("then run `statebroker verify --accept`\n")
    place.write("set", "a", "1")
    assert place.run("verify").code == 1
    with redis.Redis.from_url(place.url, protocol=2) as client:
        client.hset(ShardKeys.of(place.namespace, 0, 1).state, "x", b"\0" * 8 + b"\xc1")
    damaged = place.run("verify")
    assert damaged.code == 1
    assert "damaged: key 'x' of shard 0\n" in damaged.out
    assert json.loads(place.run("verify", "--json").out)["damaged"] == ["key 'x' of shard 0"]
    accepted = place.run("verify", "--accept")
    removed = "removed: key 'x' of shard 0, which could not be read\n"
    assert (accepted.code, accepted.out) == (0, f"{removed}equal: 2 keys in 1 shard\n")
    assert place.run("verify").code == 0


@contextmanager
def falsifying(place: ServedNamespace, keys: list[str]) -> Iterator[None]:
    """Overwrite the full state continuously, so that no two readers see the same."""
    done = threading.Event()
    state = ShardKeys.of(place.namespace, 0, 1).state

    def falsify() -> None:
        with redis.Redis.from_url(place.url, protocol=2) as client:
            while not done.is_set():
                client.hset(
                    state,
                    mapping={key: pack_field(key, 1, random.randrange(1 << 30)) for key in keys},
                )

    writer = threading.Thread(target=falsify)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


# -- the embedded server -------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_share_an_embedded_directory(
    tmp_path: Path, serve: Serve, start: NewProgram
) -> None:
    """`serve` and commands that name one directory share a server; the data outlive them all."""
    url = f"embedded://{tmp_path / 'data'}"
    workers = serve(url, "default")
    ready = (tmp_path / "ready1").read_text().strip()
    assert ready.startswith("unix://")

    def run(*arguments: str, at: str = url) -> Result:
        return start(*arguments, STATEBROKER_URL=at).result()

    token = run("set", "--json", "door", "open").json["token"]
    with Replica(ready) as replica:
        replica.wait_for(token, 10)
    assert run("get", "door").out == run("get", "door", at=ready).out == '"open"\n'
    assert run("status", "--check").code == 0
    workers.stop()
    # Nobody serves now: the command gets the server, and workers, for as long as it needs them.
    assert run("get", "door").out == '"open"\n'
    assert run("increment", "visits").code == 0
    workers = serve(url, "default")
    eventually(lambda: run("get", "visits").out == "1\n", 20)
    assert run("get", "--json").json == {"door": "open", "visits": 1}
    assert run("verify").code == 0
    workers.stop()
