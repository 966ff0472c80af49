"""`status`: show what Redis holds of a namespace, and its workers."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import RenderableType
from rich.table import Table

from broker import Inspector, Replica
from broker.backend.damage import Damage
from broker.engine.repair import damages
from broker.errors import BrokerError
from broker.model import Status
from broker.stats.namespace import NamespaceStatus, ShardStats
from workers.cli.checks import (
    LIVE_TIMEOUT_S,
    ROLES,
    SUBSCRIBER,
    WORKERS,
    Joined,
    faults,
    settings_faults,
    this_host,
)
from workers.cli.content import as_text
from workers.cli.options import checked_options, connection_options, setting_options
from workers.cli.terminal import cell, say, show, table, tell

COMPARE_PAUSE_S = 0.02
MAX_GONE = 10  # workers that are gone, in the table
MANY_IDLE = 100  # nodes
LONG_IDLE_MS = 86_400_000
STYLES = {"green": "green", "red": "red", "gone": "dim"}


@click.command()
@connection_options
@setting_options("staleness_bound")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--check",
    is_flag=True,
    help="Exit with 1, and print why, unless data flows: a flush worker and a scheduler run, all "
    "running workers are green, nothing is damaged, and a replica that joins now becomes live and "
    "holds what schedulers wrote.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(ROLES),
    help="With --check: look only at what this role needs. May be repeated.",
)
@click.option(
    "--here",
    is_flag=True,
    help="With --role flush or schedule: only workers of this machine or container count.",
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
    here: bool,  # noqa: FBT001
    nodes: int,
    **texts: str | None,
) -> None:
    """Show the shards, nodes and workers of a namespace.

    That is offsets, pending deltas, sizes, leases, the health of workers, and the lag. The lag is
    measured by a replica that joins. A worker is green, red with the reason, or gone: without a
    heartbeat for 10 s.

    \b
    For a health check of one process or container, --check --role says whether
      flush       a flush worker is live, and all are green
      schedule    the same for schedulers
      producer    every shard is there, and what is accepted is published within 10 s
      subscriber  a replica that joins now becomes live within 5 s
    and prints only what is wrong, on stderr. The exit status is 0 if the role can do its
    work, 1 if not or if the server cannot be reached, 2 for wrong options.

    \b
    Examples:
      statebroker status --url redis://localhost --check
      statebroker status --check --role flush --here
      statebroker status --check --role flush --role schedule    # beside `statebroker serve`
    """  # noqa: D301 - click reads the escapes
    _, settings, _ = checked_options(namespace, texts)
    bound = settings["staleness_bound"]
    _check_combination(check=check, roles=roles, here=here)
    with Inspector(url, namespace=namespace) as inspector:
        found = inspector.status()
    unfit = settings_faults(found.shards, bound)
    joined = None
    if not roles or SUBSCRIBER in roles:
        joined = _join(url, namespace, bound, waits=not roles)
    # Of a whole namespace; a role is judged by what it needs.
    damaged: Sequence[Damage] = () if roles else _damaged(url, namespace, joined)
    if as_json:
        replica = asdict(joined) if joined else None
        told = {"replica": replica, "damages": list(map(str, damaged))}
        say(as_text(found.as_dict() | told))
    elif joined is not None and not roles:
        _print(found, joined, damaged, nodes)
        show(*(cell(fault, "yellow") for fault in unfit))
    host = this_host() if here else ""
    wrong: list[str] = []
    if check:
        wrong = faults(found.shards, found.workers, joined, damaged, roles=roles, host=host)
    for fault in wrong:
        tell(fault)
    # What may keep replicas from being live is no fault of a role.
    for fault in unfit if check or as_json else ():
        tell(fault)
    sys.exit(1 if wrong else 0)


def _damaged(url: str, namespace: str, joined: Joined | None) -> Sequence[Damage]:
    is_live = joined is not None and joined.status == Status.LIVE
    return asyncio.run(damages(url, namespace, is_whole=not is_live))


def _check_combination(*, check: bool, roles: Sequence[str], here: bool) -> None:
    if roles and not check:
        raise click.UsageError("--role says what --check looks at: give --check too")
    if here and not set(roles) & set(WORKERS):
        raise click.UsageError(
            "--here counts the workers of this machine: give --role flush or --role schedule too"
        )


def _join(url: str, namespace: str, bound: float, *, waits: bool) -> Joined:
    """Join as a replica, and return how that went; it may wait for what a large load is worth."""
    started = time.monotonic()
    with Replica(url, namespace=namespace, staleness_bound=bound) as replica:
        try:
            replica.wait_live(LIVE_TIMEOUT_S)
        except (BrokerError, TimeoutError):
            return Joined(str(replica.status))
        took, lag = round(time.monotonic() - started, 4), round(replica.lag, 4)
        stats = replica.stats()
        while waits and stats.shards_uncompared and time.monotonic() < started + LIVE_TIMEOUT_S:
            time.sleep(COMPARE_PAUSE_S)
            stats = replica.stats()
        doubts = stats.health.reasons if stats.status is Status.LIVE else ()
        return Joined(
            *(str(replica.status), took, lag, stats.keys_damaged, doubts),
            *(stats.bytes_compressed, stats.bytes_uncompressed),
        )


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
    if joined.unreadable:
        title.append_text(cell(f", and lacks {joined.unreadable:,} keys", "red"))
    away = [one for one in found.shards if one.away]
    here = [one for one in found.shards if not one.away]
    show(title, *(cell(f"shard {one.shard} is away: {one.away}", "red") for one in away))
    show(_flow(here), _kept(here))
    if server.deployment == "cluster":
        places = [(one.shard, one.slot, one.held_by) for one in here]
        show(table(("shard", "slot", "node"), places))
    show(*_nodes(found, most_nodes), *_compressed(joined), *_workers(found))
    show(*(cell(f"a replica joining now is {doubt}", "red") for doubt in joined.doubts))
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
    idle = [one for one in found.nodes if not one.pending_deltas]
    if len(idle) > MANY_IDLE:
        long = sum((one.idle_ms or 0) > LONG_IDLE_MS for one in idle)
        shown.append(
            cell(
                f"{len(idle):,} nodes have nothing pending, {long:,} are known to be idle for over "
                "a day; run `statebroker repair --forget-idle 7d` daily, which forgets those whose "
                "processes ended"
            )
        )
    return shown


def _compressed(joined: Joined) -> list[RenderableType]:
    """Return what compression saves, as far as the log shows it."""
    before, after = joined.bytes_uncompressed, joined.bytes_compressed
    if not after:
        return []
    return [
        cell(
            f"compressed chunks in the log: {after:,} B for {before:,} B, "
            f"{before / after:.1f} times fewer"
        )
    ]


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
    newest_gone = sorted(gone, key=lambda one: one.seen_ms)[:MAX_GONE]
    rows = []
    for one in found.workers:
        if one.health == "gone" and one not in newest_gone:
            continue
        health = f"{one.health}: {one.reason}" if one.reason else one.health
        line = (one.worker, one.role, f"{one.seen_ms / 1000:.1f} s ago", health)
        rows.append([cell(text, STYLES[one.health]) for text in line])
    shown: list[RenderableType] = [table(("worker", "role", "last seen", "health"), rows)]
    if len(gone) > MAX_GONE:
        shown.append(cell(f"and {len(gone) - MAX_GONE:,} more workers that are gone"))
    return shown


def _behind(found: NamespaceStatus) -> str:
    """Return the kind of deployment and its primary, as text; "" for a single server."""
    deployment = found.server.deployment
    if deployment == "sentinel":
        # All shards are on one primary, except during a failover.
        primaries = dict.fromkeys(str(one.held_by) for one in found.shards)
        return f" (primary {', '.join(primaries)}, behind Sentinels)"
    return " (Cluster)" if deployment == "cluster" else ""
