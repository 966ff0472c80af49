"""`config`: show every setting, its value and its source."""

from __future__ import annotations

import json
from typing import Any

import click
from click.core import ParameterSource

from broker.backend.urls import redacted
from broker.config import SETTINGS, allowed
from workers.cli.options import checked_options, connection_options, setting_options
from workers.cli.terminal import say, show, table

SOURCES = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
}


@click.command()
@connection_options
@setting_options(*SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def config(
    ctx: click.Context,
    /,
    url: str,
    namespace: str,
    as_json: bool,  # noqa: FBT001 - how click calls
    **texts: str | None,
) -> None:
    """Show every setting with its value, source, range and meaning.

    \b
    Example:
      STATEBROKER_LINGER=5ms statebroker config
    """  # noqa: D301 - click reads the escapes
    _, values, _ = checked_options(namespace, texts)
    rows: list[dict[str, Any]] = [
        {"name": "url", "value": redacted(url), "unit": "", "allowed": "", "means": "server"},
        {
            "name": "namespace",
            "value": namespace,
            "unit": "",
            "allowed": "",
            "means": "name of the state",
        },
    ]
    rows += [
        {
            "name": name,
            "value": values[name],
            "unit": setting.unit,
            "allowed": allowed(name),
            "means": setting.meaning,
        }
        for name, setting in SETTINGS.items()
    ]
    for row in rows:
        source = ctx.get_parameter_source(row["name"])
        row["from"] = SOURCES.get(source, "default") if source else "default"
    if as_json:
        say(json.dumps({row["name"]: row for row in rows}))
        return
    lines = [
        (
            row["name"],
            f"{row['value']} {row['unit']}".strip(),
            row["from"],
            row["allowed"],
            row["means"],
        )
        for row in rows
    ]
    show(table(("setting", "value", "from", "allowed", "meaning"), lines))
