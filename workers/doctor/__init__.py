"""Whether a server keeps what statebroker promises by it: facts first, then what they mean."""

from __future__ import annotations

from workers.doctor.access import judge_access
from workers.doctor.examine import examine
from workers.doctor.model import Facts, Finding, Severity
from workers.doctor.server import judge_server

__all__ = ["Facts", "Finding", "Severity", "examine", "judge"]


def judge(facts: Facts) -> list[Finding]:
    """Return everything that was looked at in one server, in the order in which people ask."""
    if facts.unreachable is not None:
        return [
            Finding(
                "connection",
                Severity.ERROR,
                facts.unreachable,
                "nothing works until it can be reached",
                "redis-cli -u URL PING",
            )
        ]
    return [*judge_server(facts), *judge_access(facts)]
