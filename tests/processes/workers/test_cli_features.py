"""Every command refuses a namespace with a feature word that this release does not know."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from broker.protocol.names import config_key
from broker.testing.server import Server
from tests.processes.conftest import Run

MADE = {"protocol": "3", "shards": "1", "created": "0", "features": "leases zebra"}
REASON = "needs the feature words leases, zebra, which this release does not know"


@pytest.mark.parametrize(
    "command",
    [
        *(
            "set k 1",
            "delete k",
            "get k",
            "tables",
            "watch",
            "status",
            "status --check",
            "verify",
            "repair --shards 1",
        ),
        *("repair --forget-idle 7d", "flush", "schedule", "serve", "doctor"),
    ],
)
def test_a_command_says_which_word_and_what_to_do(
    run: Run, valkey: Server, namespace: str, command: str
) -> None:
    """It ends, and neither reads nor writes anything of the namespace."""
    with redis.Redis.from_url(valkey.url, protocol=2) as raw:
        raw.hset(config_key(namespace), mapping=MADE)
        before: Any = raw.dump(config_key(namespace))
        place = {"STATEBROKER_URL": valkey.url, "STATEBROKER_NAMESPACE": namespace}
        ended = run(*command.split(), **place)
        assert ended.code not in {0, None}
        said = ended.out if command == "doctor" else ended.err
        assert f"namespace {namespace!r} {REASON}" in said
        assert "use a release that knows them, or another namespace" in said
        assert "Traceback" not in ended.err
        assert raw.keys(f"sb:{{{namespace}*") == [config_key(namespace).encode()]
        assert raw.dump(config_key(namespace)) == before
