"""Assess the access to a server: user, encryption, clock and scripts. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from broker.backend.acl import ROLES
from workers.doctor.consequences import consequence
from workers.doctor.model import Facts, Finding, Severity

OK, NOTE, WARNING, ERROR = Severity

CLOCK_NOTE_S, CLOCK_WARNING_S = 1.0, 60.0
MAX_NAMED = 4
MAX_TOLD = 2  # consequences in one finding
MAX_REFUSED = 2  # commands; a user who lacks more was made for another role


def assess_access(facts: Facts) -> list[Finding]:
    """Return the findings about the access to one server."""
    return [*_user(facts), *_roles(facts), *_tls(facts), *_clock(facts), *_scripts(facts)]


def _user(facts: Facts) -> Iterator[Finding]:
    if facts.user == "default" and not facts.has_password:
        yield Finding(
            "user",
            NOTE if facts.is_local else WARNING,
            "default, without a password",
            "everyone who can reach the server may read and change everything"
            + (" from this machine" if facts.is_local else ""),
            "ACL SETUSER default '>PASSWORD', or better one user for each role: `statebroker acl`",
        )
    elif facts.surplus:
        yield Finding(
            "user",
            NOTE,
            f"{facts.user}, with more rights than any role needs: {', '.join(facts.surplus)}",
            "a mistake in any process that runs as this user can change or remove anything",
            "give each process the user of its role: `statebroker acl`",
        )
    else:
        yield Finding("user", OK, facts.user)


def _roles(facts: Facts) -> Iterator[Finding]:
    able = [role for role, lacking in facts.lacking.items() if not lacking]
    if facts.wanted:
        for role in facts.wanted:
            if role not in able:
                yield _unable(facts, role)
    else:
        yield from _refused(facts)
        if not able and not _nearly(facts):
            yield _unable(facts, min(facts.lacking, key=lambda role: len(facts.lacking[role])))
    if able:
        text = "any role" if len(able) == len(ROLES) else " and ".join(able)
        yield Finding("acl", OK, f"may be {text} in {facts.namespace!r}")
        if len(able) < len(ROLES):
            yield Finding(
                "scripting",
                NOTE,
                "this user may load and run scripts, as every role needs",
                "Redis confines their keys, not their memory and time: this user can fill the "
                "server's memory, or block it",
                "give such a user only to who may stop the server; ACL SETUSER "
                f"{facts.user} -script|load -evalsha_ro leaves a subscriber all but its self-check",
            )


def _nearly(facts: Facts) -> dict[str, list[str]]:
    """Return command -> roles that lack little more: not made for another role, but restricted."""
    found: dict[str, list[str]] = {}
    for role, lacking in facts.lacking.items():
        commands = {right.partition(" ")[0] for right in lacking}
        if len(commands) <= MAX_REFUSED:
            for command in commands:
                found.setdefault(command, []).append(role)
    return found


def _refused(facts: Facts) -> Iterator[Finding]:
    """Yield a finding for each command that is refused to a user who has nearly all others."""
    for command, roles in _nearly(facts).items():
        severity, what = consequence(command)
        # Only an admin inspects; the others work without.
        if roles == ["admin"]:
            severity = min(severity, WARNING)
        untested = (
            f"; {len(facts.untested)} rights to change something could not be tested"
            if command == "multi" and facts.untested
            else ""
        )
        yield Finding(
            "acl",
            severity,
            f"{command.replace('|', ' ').upper()} is refused; so this user may not be "
            f"{' or '.join(roles)}{untested}",
            what,
            f"ACL SETUSER {facts.user} +{command}, or give it the rules of its role: "
            "`statebroker acl`; a server that renames the command cannot be used",
        )


def _unable(facts: Facts, role: str) -> Finding:
    lacking = facts.lacking[role]
    rest = len(lacking) - MAX_NAMED
    node = f" --node {facts.node}" if role == "producer" else ""
    told = [consequence(right) for right in lacking]
    worst = max((severity for severity, _ in told), default=ERROR)
    what = dict.fromkeys(text for severity, text in told if severity == worst)
    return Finding(
        "acl",
        ERROR,
        f"may not be {role} in {facts.namespace!r}: lacks {', '.join(lacking[:MAX_NAMED])}"
        + (f" and {rest} more" if rest > 0 else ""),
        f"as a {role}, this user fails: {'; '.join([*what][:MAX_TOLD])}",
        f"statebroker acl {role} --namespace {facts.namespace}{node}",
    )


def _tls(facts: Facts) -> Iterator[Finding]:
    if facts.is_tls:
        yield Finding("tls", OK, "on")
    elif facts.is_local:
        yield Finding("tls", OK, "off; the connection does not leave this machine")
    else:
        yield Finding(
            "tls",
            WARNING,
            "off",
            "anyone on the network path can read the state and the password, and change both",
            "give the server a tls-port and certificates, and use rediss://",
        )


def _clock(facts: Facts) -> Iterator[Finding]:
    if facts.clock_s is None:
        yield Finding(
            "clock",
            NOTE,
            "could not look: TIME is refused",
            "whether times of deltas and logs can be compared is not known",
            "give it the rules of its role: `statebroker acl`",
        )
        return
    off = max(0.0, abs(facts.clock_s) - facts.clock_error_s)
    text = f"{facts.clock_s * 1000:+.0f} ms from ours (± {facts.clock_error_s * 1000:.0f} ms)"
    severity = WARNING if off > CLOCK_WARNING_S else NOTE if off > CLOCK_NOTE_S else OK
    if severity:
        yield Finding(
            "clock",
            severity,
            text,
            "nothing breaks, since only the server's clock is used; but times of deltas and logs "
            "cannot be compared",
            "timedatectl set-ntp true, on the machine that is wrong",
        )
    else:
        yield Finding("clock", OK, text)


def _scripts(facts: Facts) -> Iterator[Finding]:
    if facts.script_error:
        yield Finding(
            "scripts",
            ERROR,
            facts.script_error,
            "every write is a script: nothing can be appended or published",
            "allow SCRIPT LOAD and EVALSHA; with Valkey 9.1 or newer load its Lua module",
        )
    elif facts.script_error is None:
        yield Finding(
            "scripts",
            NOTE,
            "this user may not run any",
            "every role needs them",
            "give it the rules of its role: `statebroker acl`",
        )
    else:
        yield Finding("scripts", OK, "SCRIPT LOAD and EVALSHA work")
