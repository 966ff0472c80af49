"""`doctor`: whether servers keep what statebroker promises by them, and how to mend it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.text import Text

from broker.backend.acl import ROLES
from broker.config import checked_name
from broker.runtime import eventloop
from workers.cli.options import checked_options, place_options
from workers.doctor import Finding, Severity, Survey, judge, survey

STYLES = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.WARNING: "yellow",
    Severity.ERROR: "bold red",
}


@click.command()
@place_options
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(list(ROLES)),
    help="What the URL's user is meant to be; an error if it may not. May be repeated.",
)
@click.option("--node", metavar="NAME", default="doctor", help="Of the producer, if it has one.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def doctor(  # noqa: PLR0917 - how click calls
    url: str,
    namespace: str,
    roles: tuple[str, ...],
    node: str,
    strict: bool,  # noqa: FBT001 - how click calls
    as_json: bool,  # noqa: FBT001
) -> None:
    """Check the servers: what was seen, what follows, and the command that mends it.

    \b
    Looked at are version, eviction, memory, persistence, replicas, output
    buffers, connections, user and rights, TLS, clock and scripts; of a
    Cluster every node and its slots, of Sentinels these, quorum and all servers.
      ok       nothing to do
      note     know it
      warning  a promise is weaker than you may think
      error    it does not work, or loses data in normal running

    Exit status 1 if there is an error (with --strict: or a warning), else 0.

    Nothing is changed. Rights are tried by commands that are queued and discarded, as the URL's
    user; run it once for each user, with --role. An admin sees most: `statebroker acl admin`.
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    checked_name("node", node)
    found = eventloop.run(survey(url, namespace, node=node, wanted=roles))
    findings = judge(found)
    worst = max(finding.severity for finding in findings)
    if as_json:
        told = [asdict(one) | {"severity": str(one.severity)} for one in findings]
        click.echo(json.dumps({"server": found.url, "worst": str(worst), "findings": told}))
    else:
        _print(found, findings)
    sys.exit(1 if worst >= (Severity.WARNING if strict else Severity.ERROR) else 0)


def _print(found: Survey, findings: list[Finding]) -> None:
    console = Console(soft_wrap=True)
    console.print(Text(found.url, style="bold"))
    for one in findings:
        line = Text(f"{one.severity!s:8}", style=STYLES[one.severity])
        # As it stands: square brackets are no markup.
        console.print(line.append(f" {one.check:14} {one.seen}", style="default"))
        if one.servers:
            is_all = len(one.servers) == len(found.servers) > 1
            named = f"all {len(found.servers)} servers" if is_all else ", ".join(one.servers)
            console.print(Text(f"{'':24}at:  {named}"))
        if one.severity:
            console.print(Text(f"{'':24}so:  {one.consequence}"))
            console.print(Text(f"{'':24}fix: {one.fix}"))
    if any("CONFIG SET" in one.fix for one in findings if one.severity):
        console.print(Text("CONFIG SET holds until a restart; CONFIG REWRITE keeps it."))
