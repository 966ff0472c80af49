"""`verify`: proves that a replica and the full state say the same, on a running system."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from broker import ABSENT, Difference, Inspector, Replica
from workers.cli.content import as_text
from workers.cli.options import checked_options, place_options

LIVE_TIMEOUT = 60.0


@click.command()
@place_options
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option(
    "--show",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Most differences, and keys of altered ranges, to print.",
)
@click.option(
    "--accept",
    is_flag=True,
    help="Take the full state for right as it is, and have its digests made anew.",
)
def verify(url: str, namespace: str, as_json: bool, show: int, accept: bool) -> None:  # noqa: FBT001
    """Prove that who joins now holds what the writers wrote; writing may go on.

    A fresh replica is compared with the digests that schedulers carry on with every full state,
    folded with the log, at one position of each shard, in 256 key ranges; the full state itself is
    summed up on the server. Only ranges that differ are read.

    Exit status 1 if the replica differs, or if the full state was altered by another hand. Then
    write the keys named anew, and call `verify --accept`.
    """
    checked_options(namespace)
    with (
        Replica(url, namespace=namespace, self_check_interval=0) as replica,
        Inspector(url, namespace=namespace) as inspector,
    ):
        if accept:
            inspector.accept()
        replica.wait_live(LIVE_TIMEOUT)
        found = replica.verify()
        altered = inspector.altered()
        keys, shards = len(replica), len(replica.positions)
    is_equal = found.is_equal and not altered
    if as_json:
        told = {
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
        }
        click.echo(as_text(told))
    else:
        for one in found.differences[:show]:
            click.echo(
                f"shard {one.shard} at offset {one.offset}: {json.dumps(one.key)}: "
                f"replica {_side(one.replica)}, history {_side(one.history)}"
            )
        for (shard, at), names in altered.items():
            click.echo(
                f"shard {shard}: key range {at:02x} of the full state is not what schedulers wrote;"
                f" its {len(names)} keys: {', '.join(map(json.dumps, names[:show]))}"
                + (" ..." if len(names) > show else "")
            )
        click.echo(_verdict(found.differences, altered, keys, shards))
    sys.exit(0 if is_equal else 1)


def _verdict(
    differences: tuple[Difference, ...], altered: dict[Any, Any], keys: int, shards: int
) -> str:
    if differences:
        return f"{len(differences)} of {keys} keys differ"
    if altered:
        return (
            f"the full state was altered by another hand in {len(altered)} of {256 * shards} key "
            "ranges; write their keys anew, then `statebroker verify --accept`"
        )
    return f"equal: {keys} keys in {shards} shard{'s' if shards > 1 else ''}"


def _as_dict(one: Difference) -> dict[str, Any]:
    told: dict[str, Any] = {"key": one.key, "shard": one.shard, "offset": one.offset}
    if one.replica is not ABSENT:
        told["replica"] = one.replica
    if one.history is not ABSENT:
        told["history"] = one.history
    return told


def _side(value: Any) -> str:
    return "absent" if value is ABSENT else as_text(value)
