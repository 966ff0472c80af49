"""`statebroker doctor` and a flush worker where a server refuses single commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from broker import Inspector, Producer
from broker.backend.acl import EVERY_CLIENT, ROLES
from broker.backend.acl import rules as acl_rules
from broker.backend.connections import Connections
from broker.protocol.names import ShardKeys
from broker.testing.server import Server, free_port
from broker.testing.waiting import eventually
from tests.acl_users import with_login
from tests.conftest import OwnServer
from tests.effort import examples
from tests.processes.conftest import Serve
from tests.processes.programs import STOP_SECONDS
from workers.doctor import Finding, Severity, assess, survey
from workers.doctor.rights import Rights, find_rights, rights_of

COMMANDS = sorted(
    {*EVERY_CLIENT}.union(
        *(role.server | role.channel | role.bulk for role in ROLES.values()),
        *(commands for role in ROLES.values() for commands in role.keys.values()),
    )
)
USER = "nearly-all"


@pytest.fixture
def owner(own_server: OwnServer) -> Iterator[tuple[Server, Any]]:
    """Give a server, and a client of its owner."""
    server = own_server(port=0)
    with redis.Redis.from_url(server.url) as client:
        yield server, client


def examined(url: str) -> list[Finding]:
    """Return the findings of the doctor."""
    return assess(asyncio.run(survey(url, "refused", seconds=0)), 3.0)


def test_each_command_that_a_role_needs_is_named_where_it_is_refused(
    owner: tuple[Server, Any],
) -> None:
    """One refused command ends nothing: it is named with what breaks, and all else is examined."""
    server, client = owner
    whole = {one.check for one in examined(server.url)}
    for command in COMMANDS[:: len(COMMANDS) // examples(len(COMMANDS))]:
        client.execute_command(
            *("ACL", "SETUSER", USER, "reset", "on", "nopass", "+@all", "~*", "&*", f"-{command}")
        )
        found = examined(with_login(server.url, USER))
        shown = command.replace("|", " ").upper()
        told = [one for one in found if one.check == "acl" and f"{shown} is refused" in one.seen]
        assert told, (command, [one.seen for one in found])
        assert told[0].consequence
        assert f"+{command}" in told[0].fix
        # Without INFO there is one finding in place of those that it gives.
        # Of a user with all other rights the doctor also says what scripts may do.
        others = {one.check for one in found} - {"scripting"}
        assert command == "info" or others == whole, command
        assert not [one for one in found if one.check == "connection"], command


@pytest.mark.parametrize("may_ask", [True, False])
@pytest.mark.parametrize("command", ["config", "blpop", "publish", "subscribe", "info", "time"])
def test_a_command_that_the_provider_took_away_is_named(
    own_server: OwnServer, command: str, *, may_ask: bool
) -> None:
    """`rename-command` answers with another error than an ACL does, whether asked or tried."""
    away = [command] if may_ask else [command, "acl"]
    renamed = [word for name in away for word in ("--rename-command", name, "")]
    server = own_server(*renamed, port=free_port(), kind="redis")
    found = examined(server.url)
    told = [one for one in found if one.check == "acl" and "is refused" in one.seen]
    assert told, [one.seen for one in found]
    assert command.upper() in told[0].seen
    assert told[0].severity == (Severity.NOTE if command == "config" else Severity.ERROR)
    assert not [one for one in found if one.check == "connection"]


def test_a_flush_worker_that_may_not_wait_says_so(
    owner: tuple[Server, Any], namespace: str, serve: Serve
) -> None:
    """Polling instead is slower, and not silent: it is red with the reason, in log and status."""
    server, client = owner
    client.execute_command(
        *("ACL", "SETUSER", USER, "reset", "on", "nopass", "+@all", "~*", "&*", "-blpop")
    )
    workers = serve(with_login(server.url, USER), namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        producer.set("k", 1)
        producer.flush(10)
        eventually(
            lambda: any("wake-ups are refused" in one.reason for one in inspector.status().workers),
            20,
            lambda: workers.err,
        )
        eventually(lambda: "health_red" in workers.err, 20)
        client.execute_command("ACL", "SETUSER", USER, "+blpop")
        eventually(lambda: "health_green" in workers.err, 20, lambda: workers.err)
    assert workers.stop() < STOP_SECONDS
    assert workers.err.count("health_red") == 1


def rights_found(url: str) -> Rights:
    """Return what the doctor finds out about the rights of a URL's user."""

    async def find() -> Rights:
        connections = Connections(url)
        try:
            wanted = rights_of(
                ShardKeys.of("refused", 0, 1), "refused", "doctor", (7, 0), is_cluster=False
            )
            return await find_rights(connections.commands(), wanted)
        finally:
            await connections.close()

    return asyncio.run(find())


@pytest.mark.parametrize("role", sorted(ROLES))
def test_the_server_is_asked_for_what_is_else_tried(owner: tuple[Server, Any], role: str) -> None:
    """Both ways find the same rights of each role; who may ask sees the destructive ones too."""
    server, client = owner
    rules = acl_rules([role], "refused", node="doctor", shards=1)
    client.execute_command("ACL", "SETUSER", USER, "reset", "on", "nopass", *rules)
    tried = rights_found(with_login(server.url, USER))
    assert tried.lacking[role] == []
    client.execute_command("ACL", "SETUSER", USER, "+acl|whoami", "+acl|dryrun", "+flushall")
    asked = rights_found(with_login(server.url, USER))
    assert asked.lacking == tried.lacking
    assert (tried.surplus, asked.surplus) == ((), ("FLUSHALL",))
    assert not tried.untested | asked.untested
    # Nothing was executed, and a subscription that is asked for is not made.
    info = client.info("commandstats")
    assert "cmdstat_flushall" not in info
    (told,) = [one for one in examined(with_login(server.url, USER)) if one.check == "user"]
    assert "more rights than any role needs: FLUSHALL" in told.seen


def test_without_multi_the_rest_is_examined(owner: tuple[Server, Any]) -> None:
    """By asking, completely; else what changes nothing is called, and the rest named untested."""
    server, client = owner
    url = with_login(server.url, USER)
    for more, unseen in (("+acl", set[str]()), ("-acl", {"hset", "del", "rpush", "publish"})):
        client.execute_command(
            *("ACL", "SETUSER", USER, "reset", "on", "nopass", "+@all", "~*", "&*"),
            *(more, "-multi", "-hmget", "-hdel"),
        )
        found = rights_found(url)
        lacking = {right.partition(" ")[0] for right in found.lacking["admin"]}
        assert lacking == ({"multi", "hmget"} if unseen else {"multi", "hmget", "hdel"})
        assert unseen <= {right.partition(" ")[0] for right in found.untested}
        assert bool(found.untested) == bool(unseen)
        assert any("multi" in one.seen.lower() for one in examined(url) if one.check == "acl")
    client.set("sb:{refused:0}:meta", "unchanged")
    rights_found(url)
    assert client.get("sb:{refused:0}:meta") == b"unchanged"
