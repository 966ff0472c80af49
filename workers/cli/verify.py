"""`verify`: prove that a replica and the full state are equal, on a running system."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from broker import ABSENT, Difference, Inspector, Replica, Verification
from workers.cli.content import as_text
from workers.cli.options import checked_options, connection_options
from workers.cli.terminal import say

LIVE_TIMEOUT = 60.0


@click.command()
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--show",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Print at most N differences, and N keys of each altered range.",
)
@click.option(
    "--accept",
    is_flag=True,
    help="Accept the full state as it is: its digests are computed again, and what cannot be read "
    "is removed.",
)
def verify(url: str, namespace: str, as_json: bool, show: int, accept: bool) -> None:  # noqa: FBT001
    """Prove that replicas hold what was written.

    Writes may continue. A new replica is compared with the digests that schedulers update with
    every full state, plus the log, at one position of each shard and in 256 key ranges; the sums of
    the full state are computed on the server. Only ranges that differ are read.

    Exit with 1 if the replica differs, or if the full state was altered by other means than a
    scheduler, or cannot be read. Then write the printed keys again, and run `statebroker verify
    --accept`.

    \b
    Example:
      statebroker verify --url redis://localhost --namespace fleet
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    removed: tuple[str, ...] = ()
    with Inspector(url, namespace=namespace) as inspector:
        if accept:
            removed = inspector.accept()
        with Replica(url, namespace=namespace, self_check_interval=0) as replica:
            replica.wait_live(LIVE_TIMEOUT)
            found = replica.verify()
            altered = inspector.altered()
            keys, shards = len(replica), len(replica.positions)
    is_equal = found.is_equal and not altered
    if as_json:
        output = {
            "equal": is_equal,
            "keys": keys,
            "shards": shards,
            "bytes_read": found.bytes_read,
            "differing": len(found.differences),
            "differing_ranges": found.ranges,
            "differences": [_as_dict(one) for one in found.differences[:show]],
            "altered": [
                {"shard": shard, "range": at, "keys": names[:show]}
                for (shard, at), names in altered.items()
            ],
            "damaged": list(found.damaged[:show]),
            "removed": list(removed),
        }
        say(as_text(output))
    else:
        for what in removed:
            say(f"removed: {what}, which could not be read")
        for what in found.damaged[:show]:
            say(f"damaged: {what}")
        for one in found.differences[:show]:
            say(
                f"shard {one.shard} at offset {one.offset}: {json.dumps(one.key)}: "
                f"replica {_side(one.replica)}, history {_side(one.history)}"
            )
        for (shard, at), names in altered.items():
            say(
                f"shard {shard}: key range {at:02x} of the full state is not what schedulers wrote;"
                f" its {len(names)} keys: {', '.join(map(json.dumps, names[:show]))}"
                + (" ..." if len(names) > show else "")
            )
        say(_verdict(found, altered, keys, shards))
    sys.exit(0 if is_equal else 1)


def _verdict(found: Verification, altered: dict[Any, Any], keys: int, shards: int) -> str:
    if found.differences:
        return f"{len(found.differences)} of {keys} keys differ"
    if found.damaged:
        return (
            f"{len(found.damaged)} keys and parts of tables in the full state are damaged, so new "
            "replicas lack or doubt them; a scheduler that has a table writes it again within a "
            "minute; write the others again, then run `statebroker verify --accept`"
        )
    if altered:
        return (
            f"the full state was altered by other means in {len(altered)} of {256 * shards} key "
            "ranges; write their keys again, then run `statebroker verify --accept`"
        )
    return f"equal: {keys} keys in {shards} shard{'s' if shards > 1 else ''}"


def _as_dict(one: Difference) -> dict[str, Any]:
    output: dict[str, Any] = {"key": one.key, "shard": one.shard, "offset": one.offset}
    if one.replica is not ABSENT:
        output["replica"] = one.replica
    if one.history is not ABSENT:
        output["history"] = one.history
    return output


def _side(value: Any) -> str:
    return "absent" if value is ABSENT else as_text(value)
