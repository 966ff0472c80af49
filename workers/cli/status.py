"""`status`: show what Redis holds of a namespace, and its workers."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from rich.console import RenderableType
from rich.table import Table

from broker import Inspector, Replica
from broker.backend.damage import Damage
from broker.engine.repair import damages
from broker.errors import BrokerError
from broker.model import Status
from broker.stats import NamespaceStatus, ShardStats, WorkerStatus
from workers.cli.content import as_text
from workers.cli.options import checked_options, connection_options
from workers.cli.terminal import cell, say, show, table, tell

LIVE_TIMEOUT = 5.0
MOST_GONE = 10  # workers that are gone, in the table
ROLES = ("flush", "schedule")
CHECKS = (*ROLES, "replica")
STYLES = {"green": "green", "red": "red", "gone": "dim"}


@click.command()
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--check",
    is_flag=True,
    help="Exit with 1, and print why, unless data flows: a flush worker and a scheduler run, all "
    "running workers are green, nothing is damaged, and a replica that joins now becomes live.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(CHECKS),
    help="With --check: look only at the workers of this role, or (replica) at one that joins. May "
    "be repeated.",
)
@click.option(
    "--nodes",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    metavar="N",
    help="Show at most N nodes: those with the most pending deltas, then with the most deltas.",
)
def status(  # noqa: PLR0917 - how click calls
    url: str,
    namespace: str,
    as_json: bool,  # noqa: FBT001 - how click calls
    check: bool,  # noqa: FBT001
    roles: tuple[str, ...],
    nodes: int,
) -> None:
    """Show the shards, nodes and workers of a namespace.

    That is offsets, pending deltas, sizes, leases, the health of workers, and the lag. The lag is
    measured by a replica that joins. A worker is green, red with the reason, or gone: without a
    heartbeat for 10 s.

    \b
    Examples:
      statebroker status --url redis://localhost --check
      statebroker status --check --role flush    # health check of a flush worker's container
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    with Inspector(url, namespace=namespace) as inspector:
        found = inspector.status()
    joined = _join(url, namespace)
    is_live = joined.status == Status.LIVE
    damaged = asyncio.run(damages(url, namespace, is_whole=not is_live))
    if as_json:
        told = {"replica": asdict(joined), "damages": list(map(str, damaged))}
        say(as_text(found.as_dict() | told))
    else:
        _print(found, joined, damaged, nodes)
    away = [f"shard {one.shard} is away: {one.away}" for one in found.shards if one.away]
    wrong = away + faults(found.workers, joined, damaged, roles or CHECKS) if check else []
    for fault in wrong:
        tell(fault)
    sys.exit(1 if wrong else 0)


@dataclass(frozen=True, slots=True)
class Joined:
    """How a replica joined.

    Attributes:
        status: its last status.
        join_s: seconds until it was live; None after a timeout.
        lag_s: its lag in seconds; None after a timeout.
    """

    status: str
    join_s: float | None = None
    lag_s: float | None = None


def faults(
    workers: Sequence[WorkerStatus],
    joined: Joined,
    damaged: Sequence[Damage] = (),
    checks: Sequence[str] = CHECKS,
) -> list[str]:
    """Return the reasons why data does not flow, one sentence each; empty if it does.

    Args:
        workers: all that are known.
        joined: how a replica joined.
        damaged: what cannot be read.
        checks: of `CHECKS`; roles of workers that are looked at, and whether the replica is.
    """
    alive = [worker for worker in workers if worker.health != "gone" and worker.role in checks]
    wanted = [role for role in ROLES if role in checks]
    missing = [role for role in wanted if role not in {worker.role for worker in alive}]
    wrong = []
    if missing:
        wrong.append(f"no live {', '.join(missing)} worker; start `statebroker serve`")
    wrong += [
        f"{worker.worker} is red: {worker.reason}" for worker in alive if worker.health == "red"
    ]
    wrong += [f"damaged: {one}; run `statebroker repair`" for one in damaged]
    if "replica" in checks and joined.status != Status.LIVE:
        wrong.append(
            f"a replica that joined was not live after {LIVE_TIMEOUT:g} s but {joined.status}"
        )
    return wrong


def _join(url: str, namespace: str) -> Joined:
    """Join as a replica, and return how that went."""
    started = time.monotonic()
    with Replica(url, namespace=namespace) as replica:
        try:
            replica.wait_live(LIVE_TIMEOUT)
        except (BrokerError, TimeoutError):
            return Joined(str(replica.status))
        took = round(time.monotonic() - started, 4)
        return Joined(str(replica.status), took, round(replica.lag, 4))


def _print(
    found: NamespaceStatus, joined: Joined, damaged: Sequence[Damage], most_nodes: int
) -> None:
    server = found.server
    title = cell(found.namespace, "bold")
    title.append_text(cell(f" on {server.name} {server.version}{_behind(found)}, protocol "))
    title.append_text(cell(f"{found.protocol}; a replica joining now is "))
    title.append_text(cell(joined.status, "bold"))
    if joined.join_s is not None:
        title.append_text(cell(f" after {joined.join_s:.3f} s"))
    away = [one for one in found.shards if one.away]
    here = [one for one in found.shards if not one.away]
    show(title, *(cell(f"shard {one.shard} is away: {one.away}", "red") for one in away))
    show(_flow(here), _kept(here))
    if server.deployment == "cluster":
        places = [(one.shard, one.slot, one.held_by) for one in here]
        show(table(("shard", "slot", "node"), places))
    show(*_nodes(found, most_nodes), *_workers(found))
    show(*(cell(f"damaged: {one}", "red") for one in damaged))
    if damaged:
        show(cell("run `statebroker repair`"))


def _nodes(found: NamespaceStatus, most: int) -> list[RenderableType]:
    """Return the table, and what it leaves out: a killed process with a generated name stays."""
    order = sorted(found.nodes, key=lambda one: (-one.pending_deltas, -one.deltas, one.node))
    rows = [(one.node, one.chunks, one.deltas, one.pending_deltas) for one in order[:most]]
    shown: list[RenderableType] = [table(("node", "chunks", "deltas", "pending"), rows)]
    if rest := order[most:]:
        pending = sum(one.pending_deltas for one in rest)
        shown.append(cell(f"and {len(rest):,} more nodes, {pending:,} deltas pending; see --nodes"))
    return shown


def _flow(shards: Sequence[ShardStats]) -> Table:
    titles = ("shard", "offset", "accepted", "published", "pending", "by count / age", "bytes")
    return table(
        titles,
        [
            (
                one.shard,
                one.offset,
                f"{one.accepted:,}",
                f"{one.published:,}",
                f"{one.pending_deltas:,} ({one.pending_bytes:,} B)"
                + (f", for {one.pending_ms / 1000:.1f} s" if one.pending_ms is not None else ""),
                f"{one.by_count:,} / {one.by_age:,}",
                f"{one.bytes_published:,}",
            )
            for one in shards
        ],
    )


def _kept(shards: Sequence[ShardStats]) -> Table:
    rows = []
    for one in shards:
        age = "" if one.snapshot_age_ms is None else f", {one.snapshot_age_ms / 1000:.1f} s ago"
        log = f"{one.log_entries:,} ({one.log_bytes:,} B)"
        written = f"{one.snapshot_offset}{age}"
        held_by = one.lease or "none"
        rows.append((one.shard, one.epoch, f"{one.state_keys:,}", written, log, held_by))
    return table(("shard", "epoch", "keys", "snapshot at", "log", "lease held by"), rows)


def _workers(found: NamespaceStatus) -> list[RenderableType]:
    gone = [one for one in found.workers if one.health == "gone"]
    newest_gone = sorted(gone, key=lambda one: one.seen_ms)[:MOST_GONE]
    rows = []
    for one in found.workers:
        if one.health == "gone" and one not in newest_gone:
            continue
        health = f"{one.health}: {one.reason}" if one.reason else one.health
        line = (one.worker, one.role, f"{one.seen_ms / 1000:.1f} s ago", health)
        rows.append([cell(text, STYLES[one.health]) for text in line])
    shown: list[RenderableType] = [table(("worker", "role", "last seen", "health"), rows)]
    if len(gone) > MOST_GONE:
        shown.append(cell(f"and {len(gone) - MOST_GONE:,} more workers that are gone"))
    return shown


def _behind(found: NamespaceStatus) -> str:
    """Return the kind of deployment and its primary, as text; "" for a single server."""
    deployment = found.server.deployment
    if deployment == "sentinel":
        # All shards are on one primary, except during a failover.
        primaries = dict.fromkeys(str(one.held_by) for one in found.shards)
        return f" (primary {', '.join(primaries)}, behind Sentinels)"
    return " (Cluster)" if deployment == "cluster" else ""
