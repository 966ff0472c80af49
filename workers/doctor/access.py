"""Assess the access to a server: user, encryption, clock and scripts. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from broker.backend.acl import ROLES
from workers.doctor.model import Facts, Finding, Severity

OK, NOTE, WARNING, ERROR = Severity

CLOCK_NOTE_S, CLOCK_WARNING_S = 1.0, 60.0
MAX_NAMED = 4


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
    elif facts.is_owner:
        yield Finding(
            "user",
            NOTE,
            f"{facts.user}, with more rights than any role needs",
            "a mistake in any process that runs as this user can change or remove anything",
            "give each process the user of its role: `statebroker acl`",
        )
    else:
        yield Finding("user", OK, facts.user)


def _roles(facts: Facts) -> Iterator[Finding]:
    if not facts.lacking:
        yield Finding(
            "acl",
            NOTE if not facts.wanted else WARNING,
            "this user may not queue a transaction (MULTI, DISCARD)",
            "its other rights were not tested",
            "give it the rules of its role: `statebroker acl`",
        )
        return
    able = [role for role, lacking in facts.lacking.items() if not lacking]
    for role in facts.wanted:
        if role not in able:
            yield _unable(facts, role)
    if not facts.wanted and not able:
        yield _unable(facts, min(facts.lacking, key=lambda role: len(facts.lacking[role])))
    elif able:
        text = "any role" if len(able) == len(ROLES) else " and ".join(able)
        yield Finding("acl", OK, f"may be {text} in {facts.namespace!r}")


def _unable(facts: Facts, role: str) -> Finding:
    lacking = facts.lacking[role]
    rest = len(lacking) - MAX_NAMED
    node = f" --node {facts.node}" if role == "producer" else ""
    return Finding(
        "acl",
        ERROR,
        f"may not be {role} in {facts.namespace!r}: lacks {', '.join(lacking[:MAX_NAMED])}"
        + (f" and {rest} more" if rest > 0 else ""),
        f"a {role} that runs as this user fails, at its start or later",
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
