"""Every command beside hostile keys, values and names: nothing of them reaches the terminal raw."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import redis

from broker.protocol.fields import pack_field
from broker.protocol.messages import TableKey
from broker.protocol.names import ShardKeys
from broker.sync.table_writer import TableWriter
from tests.processes.conftest import NewServed
from tests.processes.programs import Result
from tests.processes.served_namespace import ServedNamespace
from workers.cli import HOMES
from workers.cli.terminal import safe

HOSTILE = "a\x1b]0;owned\x07\r\nforged\x9b31m\u202ereversed\x7f\t\u2028\u200b\U000e0041."
MARKUP = "[/][bold]:smile:[link=file:///x]"

# Each with its arguments, several times where it prints in several ways.
USES: dict[str, list[list[str]]] = {
    "get": [[], ["--json"], [HOSTILE], [HOSTILE, HOSTILE + "absent"]],
    "watch": [
        ["--initial", "--count", "1"],
        ["--initial", "--json", "--count", "1", "--prefix", "a"],
    ],
    "tables": [
        [],
        ["--json"],
        [HOSTILE, "--kind", "str-f64"],
        [HOSTILE, "--json"],
        [HOSTILE, HOSTILE + "absent"],
        [HOSTILE + "absent"],
    ],
    "status": [[], ["--json"], ["--check"]],
    "verify": [[], ["--json"]],
    "repair": [[], ["--delete-content"]],
    "doctor": [[], ["--json"], ["--node", HOSTILE]],
    "set": [["--json", HOSTILE, HOSTILE], [HOSTILE], ["", HOSTILE]],
    "increment": [[HOSTILE], [HOSTILE, HOSTILE], ["--json", "n", "1"]],
    "delete": [["--json", HOSTILE + "absent"], [HOSTILE * 100]],
    "acl": [["producer"], ["producer", "--node", HOSTILE], ["producer", "--user", HOSTILE]],
    "config": [[], ["--json"], ["--shards", HOSTILE]],
    "serve": [["--shards", HOSTILE], ["--namespace", HOSTILE]],
    "flush": [["--heartbeat-interval", HOSTILE], ["--namespace", HOSTILE]],
    "schedule": [["--log-retention", HOSTILE], ["--namespace", HOSTILE]],
}


@pytest.fixture
def hostile(new_served: NewServed) -> Iterator[ServedNamespace]:
    """Give a namespace of which every text that another process may write is hostile."""
    place = new_served()
    with place.producer() as producer, redis.Redis.from_url(place.url) as raw:
        producer.set(HOSTILE, {HOSTILE: [HOSTILE, HOSTILE.encode()]})
        producer.set(MARKUP, MARKUP)
        for name in (HOSTILE, MARKUP):
            table = TableKey(name, "str-f64")
            writer = TableWriter(producer, producer._engine, producer._thread, table)
            writer.set_many([HOSTILE, MARKUP], 1.5)
        producer.flush(10)
        place.publish()
        keys = ShardKeys.of(place.namespace, 0, 1)
        now = int(time.time() * 1000)
        raw.hset(keys.intake, mapping={HOSTILE: bytes(60), MARKUP: bytes(60)})
        record = f"flush {now} {HOSTILE} {MARKUP}"
        raw.hset(keys.workers, mapping={HOSTILE: record, MARKUP: record})
        raw.set(keys.lease, f"99 {HOSTILE}{MARKUP}")
        # What `verify` names.
        raw.hset(keys.state, HOSTILE, pack_field(HOSTILE, 1, HOSTILE))
        yield place


def test_all_commands_are_tried() -> None:
    """A new command comes with its uses."""
    assert set(USES) == set(HOMES)


@pytest.mark.parametrize("command", USES)
def test_what_others_wrote_cannot_control_the_terminal(
    command: str, hostile: ServedNamespace
) -> None:
    """No escape sequence, no forged line, no reversed text; and no traceback."""
    for arguments in USES[command]:
        result = run(hostile, command, *arguments)
        printed = result.out + result.err
        assert {one for one in printed if one not in "\n\t" and safe(one) != one} == set(), printed
        assert "forged" not in {line[:6] for line in printed.splitlines()}, printed
        assert "Traceback" not in printed
        if "--json" in arguments and result.out:
            for line in result.out.splitlines():
                json.loads(line)


def run(place: ServedNamespace, *arguments: str) -> Result:
    """Run a command to its end; `watch` ends after a change."""
    program = place.start(*arguments)
    if arguments[0] == "watch":
        with place.producer() as producer:
            while program.is_running:
                producer.set(HOSTILE, HOSTILE)
                place.publish()
    return program.result()


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_a_terminal_without_a_character_shows_its_escape(
    new_served: NewServed, encoding: str
) -> None:
    """No traceback: what the terminal cannot show is printed as an escape."""
    place = new_served()
    place.write("set", "größe", "€")
    for command in ("get", "status", "config", "doctor", "verify"):
        result = place.run(command, PYTHONIOENCODING=encoding, COLUMNS="0")
        assert (result.code, "Traceback" in result.err) == (0, False), result
        assert len(result.out) > 10
        if command == "get":
            assert "\\u20ac" in result.out
