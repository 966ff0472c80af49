"""Whether a server keeps what statebroker promises by it: facts first, then what they mean."""

from __future__ import annotations

from dataclasses import replace

from workers.doctor.access import judge_access
from workers.doctor.deployment import judge_deployment
from workers.doctor.model import Facts, Finding, SentinelFacts, Severity, Survey
from workers.doctor.server import judge_server
from workers.doctor.survey import survey

__all__ = ["Facts", "Finding", "SentinelFacts", "Severity", "Survey", "judge", "survey"]


def judge(survey: Survey) -> list[Finding]:
    """Return everything that was looked at, in the order in which people ask.

    What several servers of a deployment share is one finding, which names them.
    """
    if survey.unreachable is not None:
        return [_away(survey.unreachable, Severity.ERROR)]
    shared: dict[Finding, list[str]] = {}
    for facts in survey.servers:
        for finding in _judged(facts):
            shared.setdefault(finding, []).append(facts.at)
    return [
        *judge_deployment(survey),
        *(
            replace(finding, servers=tuple(at for at in servers if at))
            for finding, servers in shared.items()
        ),
    ]


def _judged(facts: Facts) -> list[Finding]:
    if facts.unreachable is None:
        return [*judge_server(facts), *judge_access(facts)]
    is_needed = bool(facts.slots) or (facts.kind != "cluster" and not facts.primary)
    return [_away(facts.unreachable, Severity.ERROR if is_needed else Severity.WARNING)]


def _away(why: str, severity: Severity) -> Finding:
    return Finding(
        "connection",
        severity,
        why,
        "nothing works until it can be reached"
        if severity is Severity.ERROR
        else "nothing is lost, but it cannot take over",
        "redis-cli -u URL PING",
    )
