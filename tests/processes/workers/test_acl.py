"""Every process with its own user, under the rules that `statebroker acl` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import Inspector, Producer, Replica
from broker.backend.acl import ROLES
from broker.testing.server import KINDS, Server
from broker.testing.waiting import eventually
from tests.acl_users import PASSWORD, RoleUsers, with_login
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, Run, Serve
from tests.processes.programs import START_SECONDS, STOP_SECONDS


@pytest.fixture(params=[None, pytest.param(3, marks=pytest.mark.slow)], ids=["patterns", "exact"])
def users(request: pytest.FixtureRequest, server: Server, namespace: str) -> Iterator[RoleUsers]:
    """Create a user of each role; the producers' is limited to the node bus1."""
    with RoleUsers([server.url], namespace, node="bus1", shards=request.param) as users:
        yield users


def test_every_process_works_with_the_rights_of_its_role(
    server: Server, users: RoleUsers, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """Flusher, scheduler, producer and subscriber do all their work without a refused command."""
    # The namespace is made by the first role that comes, which may be any.
    with Producer(
        users.url("producer", server.url), namespace=namespace, node="bus1", shards=3
    ) as producer:
        workers = [
            serve(users.url("flusher", server.url), namespace, command="flush"),
            serve(
                *(users.url("scheduler", server.url), namespace),
                *("--global-data-update-interval", "0.1", "--log-retention", "0"),
                command="schedule",
            ),
        ]
        url = users.url("subscriber", server.url)
        with Replica(url, namespace=namespace) as replica:
            for number in range(30):
                producer.set_many({f"k{n}": number for n in range(number)})
                producer.increment("sum")
                producer.delete(f"k{number - 3}")
                producer.flush(10)
            replica.wait_for(producer.flush(10), 10)
            expected = dict(replica)
            assert expected["sum"] == 30
            with Inspector(server.url, namespace=namespace) as inspector:
                eventually(lambda: inspector.state() == expected, 20, lambda: workers[1].err)
            with Replica(url, namespace=namespace) as latecomer:
                latecomer.wait_live(10)
                assert dict(latecomer) == expected
                assert latecomer.verify().is_equal
            place = {"STATEBROKER_NAMESPACE": namespace}
            programs = [
                start(*words, STATEBROKER_URL=users.url(role, server.url), **place)
                for role, words in [
                    ("subscriber", ("get", "sum")),
                    ("subscriber", ("verify",)),
                    ("subscriber", ("watch", "--count", "1")),
                    ("admin", ("status", "--check")),
                    ("admin", ("verify", "--accept")),
                    ("admin", ("set", "by", "admin")),
                ]
            ]
            eventually(
                lambda: (producer.increment("n"), not programs[2].is_running)[1],
                START_SECONDS,
                lambda: programs[2].err,
            )
            for program in programs:
                result = program.result()
                assert result.code == 0, result
            assert programs[0].out == "30\n"
        retries = producer.stats().retries
    for worker in workers:
        assert worker.stop() < STOP_SECONDS
        assert "WARNING" not in worker.err, worker.err
    assert retries == 0
    assert users.refused() == set()


@pytest.mark.parametrize("kind", KINDS)
def test_printed_rules_are_taken_as_they_stand(
    kind: str, own_server: OwnServer, run: Run, tmp_path: Path
) -> None:
    """As a command and as an aclfile, of each role; the password is not in them."""
    (tmp_path / "secret").write_text(PASSWORD)
    common = ("--namespace", "fleet", "--user-password-file", "secret")
    combined = ("flusher", "scheduler")
    every = [*[(role,) for role in ROLES], combined]
    first = own_server(kind=kind, port=0)
    commands = [run("acl", *roles, *common, STATEBROKER_URL=first.url) for roles in every]
    lines = [run("acl", *roles, *common, "--aclfile", "--shards", "2") for roles in every]
    assert not [
        reported for reported in (*commands, *lines) if reported.err or PASSWORD in reported.out
    ]
    names = {"fleet-" + "-".join(roles) for roles in every}
    (tmp_path / "users.acl").write_text("".join(reported.out for reported in lines))
    second = own_server("--aclfile", str(tmp_path / "users.acl"), kind=kind, port=0)
    with redis.Redis.from_url(first.url) as owner:
        known: Any = owner.execute_command("INFO", "server")
        for reported in commands:
            owner.execute_command(*shlex.split(reported.out))
            version = tuple(map(int, known["redis_version"].split(".")))
            assert ("+client|setinfo" in reported.out) == (version >= (7, 2))
    for server in (first, second):
        with redis.Redis.from_url(server.url) as owner:
            found: Any = owner.execute_command("ACL", "USERS")
            assert names <= {user.decode() for user in found}
        with redis.Redis.from_url(with_login(server.url, "fleet-flusher-scheduler")) as user:
            assert user.ping()


def test_serve_runs_with_both_roles_of_workers(
    own_server: OwnServer, namespace: str, serve: Serve, run: Run, tmp_path: Path
) -> None:
    """`acl flusher scheduler` is what one `serve` needs, helpers included."""
    server = own_server(port=0)
    (tmp_path / "secret").write_text(PASSWORD)
    reported = run(
        *("acl", "flusher", "scheduler", "--user", "serve", "--user-password-file", "secret"),
        STATEBROKER_URL=server.url,
        STATEBROKER_NAMESPACE=namespace,
    )
    with redis.Redis.from_url(server.url) as owner:
        owner.execute_command(*shlex.split(reported.out))
        workers = serve(with_login(server.url, "serve"), namespace, "--workers", "2")
        with (
            Producer(server.url, namespace=namespace) as producer,
            Replica(server.url, namespace=namespace) as replica,
        ):
            producer.set("a", 1)
            replica.wait_for(producer.flush(5), 5)
        assert workers.stop() < STOP_SECONDS
        assert owner.acl_log() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("flusher", "--node", "n1"), "--node is only for a producer"),
        (("producer", "flusher", "--node", "n1"), "the other roles serve all nodes"),
        (("producer", "--node", "a b"), "node 'a b' is not a name"),
        (("producer", "--user", "a b"), "user 'a b' is not a name"),
        (("producer", "--user-password-file", "none"), "cannot read the password file none"),
        (("reader",), "'reader' is not one of"),
    ],
)
def test_what_makes_no_rule_is_reported(run: Run, words: tuple[str, ...], message: str) -> None:
    """Exit status 2, and what is wrong; nothing is printed that could be taken for a rule."""
    reported = run("acl", *words)
    assert (reported.code, reported.out) == (2, "")
    assert message in reported.err


def test_a_rule_without_a_password_says_so(run: Run) -> None:
    """A rule without a password gives no access, and stderr says what to add."""
    reported = run("acl", "subscriber", "--namespace", "fleet")
    assert reported.out.startswith("ACL SETUSER fleet-subscriber reset on +")
    assert ("#" in reported.out, "nopass" in reported.out, len(reported.out.splitlines())) == (
        False,
        False,
        1,
    )
    assert "no password yet" in reported.err
