"""`status`: what Redis holds of a namespace, and who works on it."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from broker import Inspector, Replica
from broker.errors import BrokerError
from workers.cli.options import checked_options, place_options

LIVE_TIMEOUT = 5.0
# A worker that is alive is heard of every heartbeat (1 s) or lease renewal (3 s).
ALIVE_MS = 10_000


@click.command()
@place_options
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option(
    "--check", is_flag=True, help="Exit with 1 unless flush workers and a scheduler are alive."
)
def status(url: str, namespace: str, as_json: bool, check: bool) -> None:  # noqa: FBT001
    """Show shards, offsets, pending deltas, sizes, nodes, workers, lease and lag.

    The lag is measured: a replica joins, and says how long the newest packet took to arrive.
    """
    checked_options(namespace)
    with Inspector(url, namespace=namespace) as inspector:
        found = inspector.status()
    found["replica"] = _replica(url, namespace)
    alive = [worker for worker in found["workers"] if worker["seen_ms"] < ALIVE_MS]
    roles = {worker["role"] for worker in alive}
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found)
    if check and roles < {"flush", "schedule"}:
        missing = ", ".join(sorted({"flush", "schedule"} - roles))
        click.echo(f"statebroker: no live {missing} worker; start `statebroker serve`", err=True)
        sys.exit(1)


def _replica(url: str, namespace: str) -> dict[str, Any]:
    """Join as a replica does, and say how that went."""
    started = time.monotonic()
    with Replica(url, namespace=namespace) as replica:
        try:
            replica.wait_live(LIVE_TIMEOUT)
        except (BrokerError, TimeoutError):
            return {"status": str(replica.status), "join_s": None, "lag_s": None}
        joined = round(time.monotonic() - started, 4)
        return {"status": str(replica.status), "join_s": joined, "lag_s": round(replica.lag, 4)}


def _print(found: dict[str, Any]) -> None:
    console = Console()
    server, replica = found["server"], found["replica"]
    console.print(
        f"[bold]{found['namespace']}[/] on {server['name']} {server['version']}, "
        f"protocol {found['protocol']}; a replica joining now is [bold]{replica['status']}[/]"
        + (f" after {replica['join_s']:.3f} s" if replica["join_s"] is not None else "")
    )
    flow = Table("shard", "offset", "accepted", "published", "pending", "by count / age", "bytes")
    kept = Table("shard", "epoch", "keys", "snapshot at", "log", "lease held by")
    for one in found["shards"]:
        age = one["snapshot_age_ms"]
        flow.add_row(
            str(one["shard"]),
            str(one["offset"]),
            f"{one['accepted']:,}",
            f"{one['published']:,}",
            f"{one['pending_deltas']:,} ({one['pending_bytes']:,} B)",
            f"{one['by_count']:,} / {one['by_age']:,}",
            f"{one['bytes_published']:,}",
        )
        kept.add_row(
            str(one["shard"]),
            one["epoch"],
            f"{one['state_keys']:,}",
            f"{one['snapshot_offset']}" + (f", {age / 1000:.1f} s ago" if age is not None else ""),
            f"{one['log_entries']:,} ({one['log_bytes']:,} B)",
            one["lease"] or "nobody",
        )
    console.print(flow)
    console.print(kept)
    nodes = Table("node", "chunks", "deltas", "pending")
    for node in found["nodes"]:
        nodes.add_row(
            node["node"], str(node["chunks"]), str(node["deltas"]), str(node["pending_deltas"])
        )
    console.print(nodes)
    workers = Table("worker", "role", "last seen")
    for worker in found["workers"]:
        seen = worker["seen_ms"] / 1000
        style = "" if worker["seen_ms"] < ALIVE_MS else "red"
        workers.add_row(worker["worker"], worker["role"], f"{seen:.1f} s ago", style=style)
    console.print(workers)
