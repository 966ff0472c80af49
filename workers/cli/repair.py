"""`repair`: mend what others wrote into a namespace."""

from __future__ import annotations

import asyncio

import click

from broker.config import checked_age
from broker.engine.forgetting import forget_idle
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
@click.option(
    "--forget-idle",
    "age",
    metavar="DURATION",
    help="Instead, forget the writers that were not heard of for so long, as 7d.",
)
def repair(
    url: str,
    namespace: str,
    shards: int | None,
    delete_content: bool,  # noqa: FBT001 - how click calls
    age: str | None,
) -> None:
    """Mend what others overwrote or deleted.

    While a field cannot be read, workers and producers refuse to go on and wait; `status` names it.
    This command writes again what follows from the log, the lists of pending chunks and the full
    state, and prints what it found and did. Everything may run meanwhile. What cannot be derived is
    deleted, and named as lost: write it again. It changes nothing where nothing is damaged, but the
    next full state computes its digest anew.

    A process that was killed leaves a record of the node it wrote as, and its ids of tables. With
    --forget-idle they go if the record did not change for that long, nothing of the node is
    pending, and its process does not answer within 5 s. The first run notes the records, and later
    ones compare: run it daily. A process that comes back afterwards gets an error at its next
    write, so nothing counts twice; the name can be used again at once.

    \b
    Example:
      statebroker repair --url redis://localhost --namespace fleet
      statebroker repair --forget-idle 7d
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    if delete_content and shards is None:
        raise click.UsageError("--delete-content needs --shards N")
    if age is not None:
        if shards is not None or delete_content:
            raise click.UsageError("--forget-idle mends nothing: give it alone")
        forgotten = asyncio.run(forget_idle(url, namespace, checked_age("--forget-idle", age)))
        for line in forgotten or ["no writer is idle"]:
            say(line)
        return
    done = asyncio.run(mend(url, namespace, shards, deletes_content=delete_content))
    for line in done:
        say(line)
    if not done:
        say("nothing is damaged")
