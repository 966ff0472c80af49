"""`repair`: mend what others wrote into a namespace."""

from __future__ import annotations

import asyncio

import click

from broker.engine.repair import repair as mend
from broker.protocol.constants import MAX_SHARDS
from workers.cli.options import checked_options, connection_options
from workers.cli.terminal import say


@click.command()
@connection_options
@click.option(
    "--shards",
    type=click.IntRange(1, MAX_SHARDS),
    metavar="N",
    help="The number of shards that the namespace was made with, if that cannot be read; or the "
    "one to make it with instead, as long as it holds nothing.",
)
@click.option(
    "--delete-content",
    is_flag=True,
    help="Make the namespace again with --shards, without anything it holds. Stop its producers "
    "first.",
)
def repair(url: str, namespace: str, shards: int | None, delete_content: bool) -> None:  # noqa: FBT001
    """Mend what others overwrote or deleted.

    While a field cannot be read, workers and producers refuse to go on and wait; `status` names it.
    This command writes again what follows from the log, the lists of pending chunks and the full
    state, and prints what it found and did. Everything may run meanwhile. What cannot be derived is
    deleted, and named as lost: write it again. It changes nothing where nothing is damaged, but the
    next full state computes its digest anew.

    \b
    Example:
      statebroker repair --url redis://localhost --namespace fleet
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    if delete_content and shards is None:
        raise click.UsageError("--delete-content needs --shards N")
    done = asyncio.run(mend(url, namespace, shards, deletes_content=delete_content))
    for line in done:
        say(line)
    if not done:
        say("nothing is damaged")
