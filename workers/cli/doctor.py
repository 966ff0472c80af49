"""`doctor`: check whether the servers can keep the promises, and how to fix them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from broker.backend.acl import ROLES
from broker.config import checked_name
from broker.runtime import eventloop
from workers.cli.options import checked_options, connection_options, setting_options
from workers.cli.terminal import cell, say, show
from workers.doctor import Finding, Severity, Survey, assess, survey

STYLES = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.WARNING: "yellow",
    Severity.ERROR: "bold red",
}


@click.command()
@connection_options
@setting_options("staleness_bound")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(list(ROLES)),
    help="Check that the user has the rights of this role. May be repeated.",
)
@click.option(
    "--node",
    metavar="NAME",
    default="doctor",
    help="Node name to check the rights of a producer with.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 also for a warning.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(  # noqa: PLR0917 - how click calls
    url: str,
    namespace: str,
    roles: tuple[str, ...],
    node: str,
    strict: bool,  # noqa: FBT001 - how click calls
    as_json: bool,  # noqa: FBT001
    **texts: str | None,
) -> None:
    """Check the servers and suggest fixes.

    Prints each finding, its consequence and the command that fixes it.

    \b
    It checks version, eviction, memory, persistence, replicas, output
    buffers, connections, user and rights, TLS, clock and scripts; also every
    node and slot of a Cluster, and Sentinels, their quorum and all servers.
      ok       nothing to do
      note     good to know
      warning  a promise is weaker than you may expect
      error    it does not work, or loses data in normal operation

    Exit with 1 if there is an error (with --strict also for a warning), else with 0.

    Nothing is changed. Rights are asked for (ACL DRYRUN) where the user may ask, else tested with
    commands that are queued and discarded, and with a subscription that ends at once; run it once
    as each user, with --role. The most is visible to an admin, see `statebroker acl admin`.
    --staleness-bound is that of your replicas: settings of running workers have to fit it.

    \b
    Example:
      statebroker doctor --url redis://producer@db:6379 --role producer
    """  # noqa: D301 - click reads the escapes
    _, settings, _ = checked_options(namespace, texts)
    checked_name("node", node)
    found = eventloop.run(survey(url, namespace, node=node, wanted=roles))
    findings = assess(found, settings["staleness_bound"])
    worst = max(finding.severity for finding in findings)
    if as_json:
        output = [asdict(one) | {"severity": str(one.severity)} for one in findings]
        say(json.dumps({"server": found.url, "worst": str(worst), "findings": output}))
    else:
        _print(found, findings)
    sys.exit(1 if worst >= (Severity.WARNING if strict else Severity.ERROR) else 0)


def _print(found: Survey, findings: list[Finding]) -> None:
    lines = [cell(found.url, "bold")]
    for one in findings:
        line = cell(f"{one.severity!s:8}", STYLES[one.severity])
        lines.append(line.append_text(cell(f" {one.check:14} {one.seen}", "default")))
        if one.servers:
            is_all = len(one.servers) == len(found.servers) > 1
            named = f"all {len(found.servers)} servers" if is_all else ", ".join(one.servers)
            lines.append(cell(f"{'':24}at:  {named}"))
        if one.severity:
            lines.append(cell(f"{'':24}so:  {one.consequence}"))
            lines.append(cell(f"{'':24}fix: {one.fix}"))
    if any("CONFIG SET" in one.fix for one in findings if one.severity):
        lines.append(cell("CONFIG SET holds until a restart; CONFIG REWRITE keeps it."))
    show(*lines, wraps=False)
