"""`tables`: list the tables, or print one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from broker import Replica
from broker.protocol.constants import TABLE_KINDS
from workers.cli.content import TIMEOUT, as_text, json_option
from workers.cli.options import checked_options, connection_options
from workers.cli.terminal import say, tell

if TYPE_CHECKING:
    # Every command loads this module, and importing numpy is slow.
    from broker.engine.table_view import TableView


@click.command()
@connection_options
@click.argument("name", required=False)
@click.argument("keys", nargs=-1, metavar="[KEY ...]")
@click.option(
    "--kind", type=click.Choice(TABLE_KINDS), help="Kind of the table, if the name has several."
)
@json_option
def tables(  # noqa: PLR0917 - how click calls
    url: str,
    namespace: str,
    name: str | None,
    keys: tuple[str, ...],
    kind: str | None,
    as_json: bool,  # noqa: FBT001 - how click calls
) -> None:
    """List the tables, or print one.

    A row is key, value and timestamp. Joins as a replica and prints one snapshot. Exit with 1 if
    the table or a KEY is absent.

    \b
    Examples:
      statebroker tables
      statebroker tables prices ACME --kind str-f64
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    with Replica(url, namespace=namespace, self_check_interval=0) as replica:
        replica.wait_live(TIMEOUT)
        found = [
            view
            for view in replica.tables()
            if (name is None or view.name == name) and kind in (None, view.kind)
        ]
        if name is None:
            _show_list(found, as_json)
        elif len(found) == 1:
            sys.exit(_show_table(found[0], keys, as_json))
        elif found:
            raise click.UsageError(
                f"table {name!r} has several kinds: choose one with --kind: "
                + ", ".join(view.kind for view in found)
            )
        else:
            tell(f"there is no table {name!r} in {namespace!r}")
            sys.exit(1)


def _show_list(found: list[TableView], as_json: bool) -> None:  # noqa: FBT001 - a flag passed on
    if as_json:
        lines = [{"name": one.name, "kind": one.kind, "keys": len(one)} for one in found]
        say(as_text(lines))
        return
    for one in found:
        say(one.name, one.kind, f"{len(one)} keys")


def _show_table(view: TableView, keys: tuple[str, ...], as_json: bool) -> int:  # noqa: FBT001
    copy = view.copy()
    names: list[Any] = copy.keys if isinstance(copy.keys, list) else copy.keys.tolist()
    rows = {
        str(key): (value, stamp)
        for key, value, stamp in zip(
            names, copy.values.tolist(), copy.timestamps.tolist(), strict=True
        )
        if not keys or str(key) in keys
    }
    if as_json:
        content = {
            key: {"value": value, "timestamp": stamp} for key, (value, stamp) in rows.items()
        }
        say(as_text(content))
    else:
        for key, (value, stamp) in sorted(rows.items()):
            say(key, as_text(value), stamp)
    absent = [key for key in keys if key not in rows]
    for key in absent:
        tell(f"{key!r} is absent")
    return 1 if absent else 0
