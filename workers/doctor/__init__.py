"""Check whether servers can keep the promises: collect facts, then assess them without I/O."""

from __future__ import annotations

from dataclasses import replace

from workers.doctor.access import assess_access
from workers.doctor.deployment import assess_deployment, assess_namespace, assess_settings
from workers.doctor.model import Facts, Finding, SentinelFacts, Severity, Survey
from workers.doctor.server import assess_server
from workers.doctor.survey import survey

__all__ = ["Facts", "Finding", "SentinelFacts", "Severity", "Survey", "assess", "survey"]


def assess(survey: Survey, staleness_bound: float) -> list[Finding]:
    """Return all findings, ordered by topic; `staleness_bound` is that of the replicas here.

    A finding that several servers share is returned once, with their addresses.
    """
    if survey.unreachable is not None:
        return [_unreachable(survey.unreachable, Severity.ERROR)]
    shared: dict[Finding, list[str]] = {}
    for facts in survey.servers:
        for finding in _assess(facts):
            shared.setdefault(finding, []).append(facts.at)
    return [
        *assess_deployment(survey),
        *assess_namespace(survey),
        *assess_settings(survey, staleness_bound),
        *(
            replace(finding, servers=tuple(at for at in servers if at))
            for finding, servers in shared.items()
        ),
    ]


def _assess(facts: Facts) -> list[Finding]:
    if facts.unreachable is None:
        return [*assess_server(facts), *assess_access(facts)]
    is_needed = bool(facts.slots) or (facts.kind != "cluster" and not facts.primary)
    return [_unreachable(facts.unreachable, Severity.ERROR if is_needed else Severity.WARNING)]


def _unreachable(why: str, severity: Severity) -> Finding:
    return Finding(
        "connection",
        severity,
        why,
        "nothing works until it can be reached"
        if severity is Severity.ERROR
        else "nothing is lost, but it cannot take over",
        "redis-cli -u URL PING",
    )
