"""`verify`: proves that a replica and the full state say the same, on a running system."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from broker import Inspector, Replica
from broker.codec import pack_value
from broker.errors import BackendError
from broker.keys import shard_of
from workers.cli.content import as_text
from workers.cli.options import checked_options, place_options

LIVE_TIMEOUT = 60.0
TRIES = 5


@click.command()
@place_options
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option(
    "--show",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Most differences to print.",
)
def verify(url: str, namespace: str, as_json: bool, show: int) -> None:  # noqa: FBT001
    """Compare a fresh replica with the full-state hash folded with the log.

    Both are brought to the same position of each shard first, so writing may go on. Exit status 1
    if they differ.
    """
    checked_options(namespace)
    with (
        Replica(url, namespace=namespace) as replica,
        Inspector(url, namespace=namespace) as inspector,
    ):
        replica.wait_live(LIVE_TIMEOUT)
        shards = len(replica.positions)
        differences: list[dict[str, Any]] = []
        keys = 0
        for shard in range(shards):
            held, folded, offset = _same_position(replica, inspector, shard, shards)
            keys += len(folded)
            differences += _differences(held, folded, shard, offset)
    if as_json:
        click.echo(
            as_text(
                {
                    "equal": not differences,
                    "keys": keys,
                    "shards": shards,
                    "differences": differences[:show],
                    "differing": len(differences),
                }
            )
        )
    else:
        for one in differences[:show]:
            click.echo(
                f"shard {one['shard']} at offset {one['offset']}: {json.dumps(one['key'])}: "
                f"replica {_side(one, 'replica')}, full state {_side(one, 'full_state')}"
            )
        click.echo(
            f"{len(differences)} of {keys} keys differ"
            if differences
            else f"equal: {keys} keys in {shards} shard{'s' if shards > 1 else ''}"
        )
    sys.exit(1 if differences else 0)


def _same_position(
    replica: Replica, inspector: Inspector, shard: int, shards: int
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return (replica's content, full state folded with the log, offset) of one shard."""
    for _ in range(TRIES):
        content, positions = replica.snapshot()
        position = positions[shard]
        held = {key: value for key, value in content.items() if shard_of(key, shards) == shard}
        try:
            # A snapshot may have moved beyond the copy: then take a newer copy.
            folded, _ = inspector.folded_shard(shard, position)
        except BackendError as error:
            last = error
            continue
        return held, folded, position.offset
    raise last


def _differences(
    held: dict[str, Any], folded: dict[str, Any], shard: int, offset: int
) -> list[dict[str, Any]]:
    """Compare as bytes, for 1, 1.0 and True are equal to Python only."""
    found = []
    for key in sorted(held.keys() | folded.keys()):
        one: dict[str, Any] = {"key": key, "shard": shard, "offset": offset}
        if key in held:
            one["replica"] = held[key]
        if key in folded:
            one["full_state"] = folded[key]
        if len(one) < 5 or pack_value(held[key]) != pack_value(folded[key]):  # noqa: PLR2004
            found.append(one)
    return found


def _side(one: dict[str, Any], side: str) -> str:
    return as_text(one[side]) if side in one else "absent"
