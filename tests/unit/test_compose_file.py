"""docker-compose.yml, without an engine: health, limits and rights of every service."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.compose_file import ROOT, TEXT, VARIABLE, options_of, services
from workers.cli import command
from workers.cli.checks import ROLES

SERVICES = services()
OURS = {name: one for name, one in SERVICES.items() if one["image"] == "statebroker:local"}
SERVERS = {name: one for name, one in SERVICES.items() if name not in OURS}
ROLE_OF = re.compile(r"(?:\w+-)?(flush|schedule|producer|subscriber)(?:-\w+)?")
QUESTIONS = {
    "redis": "ping",
    "store": "info replication",
    "sentinel": "sentinel ckquorum main",
    "node": "cluster info",
    "cluster": "cluster info",
}

each_service = pytest.mark.parametrize("name", SERVICES)
each_of_ours = pytest.mark.parametrize("name", OURS)
each_server = pytest.mark.parametrize("name", SERVERS)


def health(name: str) -> list[str]:
    """Return the command of a service's check."""
    found: list[str] = SERVICES[name]["healthcheck"]["test"]
    return found


@each_of_ours
def test_each_of_ours_is_checked_by_its_own_role(name: str) -> None:
    """The check is `status --check --role` of the role in the name; workers look only here."""
    role = ROLE_OF.fullmatch(name)
    assert role is not None, name
    assert role[1] in ROLES
    here = ["--here"] if role[1] in ("flush", "schedule") else []
    program, *words = health(name)[1:]
    assert (program, words) == ("statebroker", ["status", "--check", "--role", role[1], *here])
    # The command knows these words.
    command("status").make_context("status", words[1:])


@each_server
def test_each_server_is_asked_what_its_role_needs(name: str) -> None:
    """A check asks for more than an open port, and a reply that is an error fails it."""
    kind, command = health(name)
    assert kind == "CMD-SHELL"
    assert QUESTIONS[name.partition("-")[0]] in command
    # redis-cli itself succeeds then.
    assert "grep" in command


@each_service
def test_every_service_is_limited(name: str) -> None:
    """Memory, CPU and processes have a limit, so that no container can take the machine's."""
    one = SERVICES[name]
    assert re.fullmatch(r"\d+m", one["mem_limit"])
    assert float(one["cpus"]) > 0
    assert 0 < one["pids_limit"] <= 200


@each_service
def test_no_service_is_root_or_can_become_it(name: str) -> None:
    """No capability, no new privileges, a user of its own, and only data and /tmp are writable."""
    one = SERVICES[name]
    assert one["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in one["security_opt"]
    assert all(int(number) > 0 for number in one["user"].split(":"))
    assert not one.get("privileged")
    assert not one.get("cap_add")
    assert one["read_only"] is True
    assert one["tmpfs"] == ["/tmp"]  # noqa: S108 - of the container
    assert all(volume.endswith(":/data") for volume in one.get("volumes", []))


@pytest.mark.parametrize("name", [one for one in SERVERS if one.startswith("store-")])
def test_a_primary_behind_sentinels_accepts_only_what_a_replica_gets(name: str) -> None:
    """A replica that restarts is served at once, and without any no write is accepted."""
    options = options_of(name)
    assert options["min-replicas-to-write"] == "1"
    assert 0 < int(options["min-replicas-max-lag"]) <= 10
    assert options["repl-diskless-sync-delay"] == "0"


@pytest.mark.parametrize("name", [one for one in SERVERS if one.startswith("node-")])
def test_a_node_serves_a_replica_at_once_and_promotes_no_old_copy(name: str) -> None:
    """A restarted replica synchronises at once, and is no candidate before."""
    options = options_of(name)
    assert options["repl-diskless-sync-delay"] == "0"
    assert options.get("cluster-replica-validity-factor", "10") != "0"


@pytest.mark.parametrize(
    "name", [one for one in SERVERS if not one.startswith(("sentinel-", "cluster-"))]
)
def test_servers_that_hold_data_keep_it(name: str) -> None:
    """They write a file, evict nothing, and refuse writes before the container is at its limit."""
    options = options_of(name)
    assert options["appendonly"] == "yes"
    assert options["maxmemory-policy"] == "noeviction"
    limit = int(SERVICES[name]["mem_limit"].removesuffix("m"))
    assert 2 * int(options["maxmemory"].removesuffix("mb")) <= limit


def test_the_example_documents_every_variable() -> None:
    """.env.example names each variable of the file with its default, and no others."""
    example = (ROOT / ".env.example").read_text("utf-8")
    said = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    used: dict[str, set[str]] = {"COMPOSE_PROFILES": {"default"}}
    for name, default in VARIABLE.findall(TEXT):
        used.setdefault(name, set()).add(default)
    assert said.keys() == used.keys()
    wrong: dict[str, Any] = {one: said[one] for one in said if said[one] not in used[one]}
    assert wrong == {}


def test_each_service_starts_with_one_profile() -> None:
    """Without a profile a service would start with all of them."""
    assert {name: len(one["profiles"]) for name, one in SERVICES.items()} == dict.fromkeys(
        SERVICES, 1
    )
