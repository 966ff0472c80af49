"""`repair`: mend what others wrote into a namespace."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import click

from broker import Producer
from broker.config import checked_age
from broker.engine.forgetting import forget_idle
from broker.engine.repair import is_unreadable, written_anew
from broker.engine.repair import repair as mend
from broker.errors import BrokerError
from broker.protocol.constants import MAX_SHARDS
from workers.cli.content import from_text
from workers.cli.options import checked_options, connection_options
from workers.cli.terminal import say

WRITTEN_S: Final = 60.0


@click.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@connection_options
@click.option(
    "--value",
    metavar="JSON",
    help="Give KEY, whose value cannot be read, this one.",
)
@click.option(
    "--all",
    "is_all",
    is_flag=True,
    help="Delete all keys and parts of tables that cannot be read.",
)
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
def repair(  # noqa: PLR0917 - how click calls
    keys: tuple[str, ...],
    url: str,
    namespace: str,
    value: str | None,
    is_all: bool,  # noqa: FBT001 - how click calls
    shards: int | None,
    delete_content: bool,  # noqa: FBT001 - how click calls
    age: str | None,
) -> None:
    """Mend what others overwrote or deleted.

    While a field cannot be read, workers and producers refuse to go on and wait; `status` names it.
    This command writes again what follows from the log, the lists of pending chunks and the full
    state, and prints what it found and did. Everything may run meanwhile. Log entries that cannot
    be read are deleted, and named as lost: write them again.

    Values that cannot be read stay, for a running scheduler writes anew what the log proves, and
    live replicas may hold the others: read one there, and give it with --value. KEY without it, or
    --all, deletes them, from live replicas too.

    A process that was killed leaves a record of the node it wrote as, and its ids of tables. With
    --forget-idle they go if the record did not change for that long, nothing of the node is
    pending, and its process does not answer within 5 s. The first run notes the records, and later
    ones compare: run it daily. A process that comes back afterwards gets an error at its next
    write, so nothing counts twice; the name can be used again at once.

    \b
    Example:
      statebroker repair --url redis://localhost --namespace fleet
      statebroker repair prices/EUR --value 1.07
      statebroker repair --forget-idle 7d
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    if delete_content and shards is None:
        raise click.UsageError("--delete-content needs --shards N")
    if age is not None:
        if shards is not None or delete_content or keys or is_all or value is not None:
            raise click.UsageError("--forget-idle mends nothing: give it alone")
        forgotten = asyncio.run(forget_idle(url, namespace, checked_age("--forget-idle", age)))
        for line in forgotten or ["no writer is idle"]:
            say(line)
        return
    if value is not None:
        if len(keys) != 1 or is_all or shards is not None:
            raise click.UsageError("--value needs one KEY, and nothing else")
        _write(url, namespace, keys[0], from_text(value))
        return
    if keys and is_all:
        raise click.UsageError("--all deletes everything that cannot be read: give no KEY with it")
    lost = None if is_all else keys
    done = asyncio.run(mend(url, namespace, shards, deletes_content=delete_content, lost=lost))
    for line in done:
        say(line)
    if not done:
        say("nothing is damaged")


def _write(url: str, namespace: str, key: str, value: Any) -> None:
    """Give a key that cannot be read a value, as an ordinary delta."""
    if not asyncio.run(is_unreadable(url, namespace, key)):
        raise BrokerError(f"key {key!r} can be read; write it as any other key")
    with Producer(url, namespace=namespace) as producer:
        producer.set(key, value)
        producer.flush(WRITTEN_S)
    if not asyncio.run(written_anew(url, namespace, key, WRITTEN_S)):
        raise BrokerError(
            f"key {key!r} is set, but no scheduler wrote the full state within {WRITTEN_S:.0f} s: "
            "is one running?"
        )
    say(f"{key!r} is written anew")
