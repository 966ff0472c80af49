"""The cluster profile: three primaries, three replicas, and a node that joins."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from broker.protocol.names import ShardKeys, slot_of_key
from tests.compose.harness import BETWEEN, Harness
from tests.compose.project import RECOVERY_SECONDS, until

PROFILE = "cluster"
NETWORK = "default"
URL = "redis+cluster://node-1:6379,node-2:6379,node-3:6379"
WORKER = "cluster-flush"
SHARDS = 3
# A month in a minute and a half.
SPEED = 30_000
PRODUCERS = ("cluster-producer-ewr", "cluster-producer-jfk", "cluster-producer-lga")
SERVICES = (
    *(PRODUCERS[0], "cluster-flush", "cluster-schedule", "cluster-subscriber"),
    *("cluster-init", "node-4"),
)
NODES = ("node-1", "node-2", "node-3", "node-4", "node-5", "node-6")
# It is in tests/compose/harness.yml.
NEW = "node-7"
BROKEN = frozenset(("fail", "fail?", "handshake", "noaddr"))
SLOTS = [
    slot_of_key(ShardKeys.of("flights", shard, SHARDS).meta.encode()) for shard in range(SHARDS)
]


@dataclass(frozen=True)
class NodeLine:
    """A node as another node reports it."""

    identity: str
    name: str
    flags: frozenset[str]
    follows: str
    is_linked: bool
    slots: tuple[range, ...]

    @classmethod
    def of(cls, line: str) -> NodeLine:
        """Read a line of `CLUSTER NODES`."""
        identity, address, flags, follows, _, _, _, link, *slots = line.split()
        ends = [one.split("-") for one in slots if not one.startswith("[")]
        return cls(
            identity=identity,
            name=address.partition(",")[2].partition(",")[0],
            flags=frozenset(flags.split(",")),
            follows=follows,
            is_linked="myself" in flags or link == "connected",
            slots=tuple(range(int(end[0]), int(end[-1]) + 1) for end in ends),
        )


@dataclass(frozen=True)
class View:
    """One node's view: of all others and of itself."""

    nodes: tuple[NodeLine, ...]
    text: str


def views(harness: Harness) -> dict[str, View]:
    """Return each node's view; unreachable nodes have none."""
    script = f"""
    for node in {" ".join((*NODES, NEW))}; do
        for question in "cluster nodes" "cluster info" "info replication"; do
            echo "=$node"
            timeout 2 redis-cli -h $node $question
        done
    done
    """
    # One command for all: to start one in a container takes longer than to ask.
    answers = harness.project.one("cluster-init").run("sh", "-c", script).stdout.split("=node-")
    found: dict[str, str] = {}
    for answer in answers[1:]:
        number, _, text = answer.partition("\n")
        found[f"node-{number}"] = found.get(f"node-{number}", "") + text
    return {
        node: View(
            tuple(
                NodeLine.of(line)
                for line in text.splitlines()
                if " connected" in line or " disconnected" in line
            ),
            text,
        )
        for node, text in found.items()
        if text
    }


def owner(harness: Harness, slot: int) -> str:
    """Return the node that most consider a slot's owner; "" without agreement."""
    votes = [
        other.name
        for view in views(harness).values()
        for other in view.nodes
        if any(slot in one for one in other.slots)
    ]
    name = max(votes, key=votes.count, default="")
    return name if votes.count(name) > len(NODES) // 2 else ""


def is_whole(harness: Harness) -> bool:
    """Whether all nodes agree on the owners, and three replicas follow."""
    agreed = set()
    found = views(harness)
    for node in NODES:
        if node not in found:
            return False
        nodes, text = found[node].nodes, found[node].text
        if "cluster_state:ok" not in text or not nodes:
            return False
        if not all(one.name and one.is_linked and not one.flags & BROKEN for one in nodes):
            return False
        if "role:slave" in text and "master_link_status:up" not in text:
            return False
        agreed.add(frozenset((one.name, one.follows, one.slots) for one in nodes))
    (view,) = agreed if len(agreed) == 1 else (frozenset(),)
    return sum(follows != "-" for _, follows, _ in view) == 3


def is_replaced(harness: Harness, slot: int, before: str) -> None:
    """Wait until a slot has another owner."""
    until(
        lambda: owner(harness, slot) not in ("", before),
        RECOVERY_SECONDS,
        lambda: reported(harness),
    )


def replica_of(harness: Harness, name: str) -> str:
    """Return the replica of a primary, as the primary reports it."""
    nodes = views(harness)[name].nodes
    (identity,) = (one.identity for one in nodes if one.name == name)
    (found,) = (one.name for one in nodes if one.follows == identity)
    return found


def becomes_whole(harness: Harness) -> None:
    """Wait until it is."""
    until(lambda: is_whole(harness), RECOVERY_SECONDS, lambda: reported(harness))


def reported(harness: Harness) -> str:
    """Return the nodes' views of each other."""
    return "\n".join(f"--- {node}\n{view.text}" for node, view in views(harness).items())


def move(harness: Harness, slot: int, target: str) -> None:
    """Move a slot with its keys, as resharding tools do; returns once all know."""
    source = owner(harness, slot)
    names = {one.name: one.identity for one in views(harness)[source].nodes}
    script = f"""
    set -e
    say() {{ told=$(redis-cli -h "$@"); case "$told" in *ERR*) echo "$told"; exit 1 ;; esac; }}
    say {target} cluster setslot {slot} importing {names[source]}
    say {source} cluster setslot {slot} migrating {names[target]}
    while keys=$(redis-cli -h {source} cluster getkeysinslot {slot} 100) && [ "$keys" ]; do
        say {source} migrate {target} 6379 "" 0 5000 keys $keys
    done
    for node in {target} {source}; do say $node cluster setslot {slot} node {names[target]}; done
    """
    ran = harness.project.one(target).run("sh", "-c", script)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    until(lambda: owner(harness, slot) == target, RECOVERY_SECONDS, lambda: reported(harness))


@pytest.mark.parametrize("service", SERVICES)
def test_any_container_is_killed(harness: Harness, service: str) -> None:
    """The engine restarts each container, and data flows again without intervention."""
    container = harness.project.one(service)
    assert not container.has_ended_well, "the replay ended before it could be broken"
    harness.note(f"{container.name} was killed")
    container.crash_and_return()
    harness.recovers()


def test_a_primary_is_killed_and_back_at_once(harness: Harness) -> None:
    """All parts continue, whether or not the replica took over."""
    becomes_whole(harness)
    harness.note("a primary was killed", forgets=True)
    harness.project.one(owner(harness, SLOTS[1])).crash_and_return()
    becomes_whole(harness)
    harness.forgot("the primary is back, or another")
    harness.recovers()


def test_a_primary_dies(harness: Harness) -> None:
    """Its replica takes over without intervention; the old primary returns as a replica."""
    becomes_whole(harness)
    before = owner(harness, SLOTS[0])
    harness.note(f"{before} died", forgets=True)
    harness.project.one(before).kill()
    is_replaced(harness, SLOTS[0], before)
    harness.forgot("there is another primary")
    harness.recovers()
    harness.note(f"{before} is back")
    harness.project.one(before).start()
    becomes_whole(harness)
    harness.recovers()
    harness.proves()


def test_servers_restart_one_after_the_other(harness: Harness) -> None:
    """Nothing accepted goes back, also not if the replicas crash and a primary dies next."""
    becomes_whole(harness)
    before = harness.counters()
    harness.note("every node restarts")
    for node in NODES:
        harness.project.one(node).restart()
    becomes_whole(harness)
    first = owner(harness, SLOTS[0])
    # Its own at the end: it must not have had the time to synchronise by itself.
    replicas = [replica_of(harness, owner(harness, slot)) for slot in reversed(SLOTS)]
    harness.note(f"every replica crashed, and then {first} dies", forgets=True)
    for replica in replicas:
        harness.project.one(replica).crash_and_return()
    harness.accepts(BETWEEN)
    harness.project.one(first).kill()
    is_replaced(harness, SLOTS[0], first)
    harness.forgot("there is another primary")
    harness.project.one(first).start()
    becomes_whole(harness)
    harness.recovers()
    harness.kept_all_since(before)


def test_slots_move_while_writing_goes_on(harness: Harness) -> None:
    """Moving every shard to the next primary loses nothing and raises no error."""
    becomes_whole(harness)
    harness.note("slots move")
    owners = [owner(harness, slot) for slot in SLOTS]
    for slot, target in zip(SLOTS, owners[1:] + owners[:1], strict=True):
        move(harness, slot, target)
        harness.recovers()
    harness.proves()


def test_a_node_joins_and_takes_over_shards(harness: Harness) -> None:
    """Clients discover a node that joined after they started."""
    harness.note(f"{NEW} joins")
    address = harness.project.one("node-1").run("getent", "hosts", NEW).stdout.split()[0]
    met = harness.project.one("node-1").run("redis-cli", "cluster", "meet", address, "6379")
    assert met.stdout.strip() == "OK", met

    def is_known() -> bool:
        found = views(harness)
        everybody = {*NODES, NEW}
        return found.keys() == everybody and all(
            {one.name for one in view.nodes} == everybody and "cluster_state:ok" in view.text
            for view in found.values()
        )

    until(is_known, RECOVERY_SECONDS, lambda: reported(harness))
    becomes_whole(harness)
    for slot in SLOTS[:2]:
        move(harness, slot, NEW)
        harness.recovers()
    harness.proves()


def test_in_the_end_every_delta_counts_once(harness: Harness) -> None:
    """The recorded history keeps all promises, and the flights match the file's answer."""
    harness.ends_as_the_file_says(PRODUCERS)
    harness.settle()
    assert harness.violations() == []
