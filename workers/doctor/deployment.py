"""Assess a deployment as a whole: slots, replicas, and the votes for a failover. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from broker.config import unfit
from broker.protocol.names import SLOTS
from workers.doctor.model import Finding, SentinelFacts, Severity, Survey

OK, NOTE, WARNING, ERROR = Severity

# Voters needed so that a majority is left when one is down.
MIN_VOTERS = 3
MAX_NAMED = 6


def assess_deployment(survey: Survey) -> list[Finding]:
    """Return the findings about all servers together; none for a single server."""
    if survey.kind == "cluster":
        return [*_slots(survey), *_voters(survey), *_replicas(survey)]
    if survey.kind == "sentinel":
        answering = [one for one in survey.sentinels if one.unreachable is None]
        return [
            *_sentinels(survey, answering),
            *_quorum(answering),
            *_primary(answering),
            *_known_replicas(answering),
        ]
    return []


def assess_namespace(survey: Survey) -> Iterator[Finding]:
    """Return why this release cannot use the namespace; nothing if it can."""
    if survey.refusal:
        seen, _, fix = survey.refusal.rpartition("; ")
        yield Finding(
            "namespace",
            ERROR,
            seen,
            "producers, workers and replicas of this release refuse it",
            fix,
        )


def assess_settings(survey: Survey, staleness_bound: float) -> Iterator[Finding]:
    """Return how settings of running workers do not fit a replica's bound; none if they do."""
    for fault in unfit(survey.heartbeat_s, survey.max_age_s, staleness_bound):
        seen = f"the running workers' {fault.settings} of replicas"
        yield Finding("settings", WARNING, seen, fault.effect, fault.fix)


# -- Cluster --------------------------------------------------------------------------------------


def _slots(survey: Survey) -> Iterator[Finding]:
    owned = sorted(
        (first, last, server) for server in survey.servers for first, last in server.slots
    )
    missing, at = [], 0
    for first, last, _ in [*owned, (SLOTS, SLOTS, None)]:
        if at < first:
            missing.append((at, first - 1))
        at = last + 1
    if missing:
        count = sum(last - first + 1 for first, last in missing)
        ranges = _some([f"{first}-{last}" for first, last in missing])
        yield Finding(
            "slots",
            ERROR,
            f"{count} of {SLOTS} have no owner: {ranges}",
            "shards whose keys are in them accept and publish nothing",
            f"redis-cli --cluster fix {survey.servers[0].at}",
        )
        return
    owners = len({server.at for _, _, server in owned})
    yield Finding("slots", OK, f"all {SLOTS} have an owner, on {owners} primaries")


def _voters(survey: Survey) -> Iterator[Finding]:
    count = sum(bool(server.slots) for server in survey.servers)
    if count < MIN_VOTERS:
        yield Finding(
            "majority",
            WARNING,
            f"{count} primaries own slots",
            "when one is down the others are no majority: its replica never takes over",
            f"redis-cli --cluster add-node NEW:PORT {survey.servers[0].at}, then redis-cli "
            "--cluster rebalance with --cluster-use-empty-masters",
        )


def _replicas(survey: Survey) -> Iterator[Finding]:
    followed = Counter(
        server.primary for server in survey.servers if server.primary and not server.unreachable
    )
    primaries = [server.at for server in survey.servers if server.slots]
    unreplicated = [at for at in primaries if not followed[at]]
    if unreplicated:
        yield Finding(
            "replicas",
            WARNING,
            f"{len(unreplicated)} of {len(primaries)} primaries have none: {_some(unreplicated)}",
            "while such a primary is down its shards accept nothing; flush(redis_replicas=1) never "
            "returns",
            f"redis-cli --cluster add-node NEW:PORT {unreplicated[0]} --cluster-slave",
        )
    elif primaries:
        least = min(followed[at] for at in primaries)
        yield Finding("replicas", OK, f"each of {len(primaries)} primaries has {least} or more")


# -- Sentinels ------------------------------------------------------------------------------------


def _sentinels(survey: Survey, answering: list[SentinelFacts]) -> Iterator[Finding]:
    count = len(survey.sentinels)
    away = [one for one in survey.sentinels if one.unreachable is not None]
    if away:
        yield Finding(
            "sentinels",
            WARNING,
            f"{len(away)} of {count} cannot be asked: "
            + _some([f"{one.at} ({one.unreachable})" for one in away]),
            "fewer are left to agree on a failover, and to inform clients",
            "start them; SENTINEL RESET on the others removes one that no longer exists",
        )
    if count < MIN_VOTERS:
        yield Finding(
            "sentinels",
            WARNING,
            f"{count} in all",
            "when one is down, maybe with the machine of the primary, the rest is no majority: no "
            "replica takes over",
            "run at least three, each on its own machine",
        )
    elif not away:
        yield Finding("sentinels", OK, f"all {count} answer")
    apart = [one for one in answering if one.others != count - 1]
    if apart:
        yield Finding(
            "sentinels",
            WARNING,
            f"there are {count}, but some know fewer or more: "
            + _some([f"{one.at} knows {one.others} others" for one in apart]),
            "they do not agree on what a majority is",
            "SENTINEL RESET on each of these, one after the other, 30 s apart",
        )


def _quorum(answering: list[SentinelFacts]) -> Iterator[Finding]:
    quorums = sorted({one.quorum for one in answering})
    stuck = [one for one in answering if one.trouble]
    if stuck:
        yield Finding(
            "quorum",
            ERROR,
            _some([f"{one.at}: {one.trouble}" for one in stuck]),
            "if the primary fails now no replica takes over",
            "start the sentinels that are down; SENTINEL CKQUORUM shows when enough run",
        )
    elif len(quorums) > 1:
        yield Finding(
            "quorum",
            WARNING,
            "they differ: " + _some([f"{one.at} has {one.quorum}" for one in answering]),
            "when a failover begins depends on who notices first",
            "SENTINEL SET with the same quorum on each",
        )
    elif quorums:
        yield Finding("quorum", OK, f"{quorums[0]}, and enough answer for a failover")


def _primary(answering: list[SentinelFacts]) -> Iterator[Finding]:
    named = Counter(one.primary for one in answering)
    if len(named) > 1:
        yield Finding(
            "primary",
            ERROR,
            "sentinels differ: " + ", ".join(f"{at} say {n}" for at, n in named.most_common()),
            "clients take the newest configuration's; the other server may still accept writes",
            "if it lasts longer than a failover: SENTINEL RESET on those that are wrong",
        )
    missing = [one.at for one in answering if "down" in one.flags]
    if missing:
        yield Finding(
            "primary",
            ERROR,
            f"{len(missing)} of {len(answering)} sentinels cannot reach it: {_some(missing)}",
            "nothing is accepted until it is back, or a replica has taken over",
            "check whether it runs, and the network between them",
        )
    elif len(named) == 1:
        yield Finding("primary", OK, f"{next(iter(named))}, seen by {len(answering)} sentinels")


def _known_replicas(answering: list[SentinelFacts]) -> Iterator[Finding]:
    lost = sorted(
        {
            at
            for one in answering
            for at, flags in one.replicas.items()
            if "down" in flags or "disconnected" in flags
        }
    )
    if lost:
        yield Finding(
            "candidates",
            WARNING,
            f"sentinels cannot reach {_some(lost)}",
            "they cannot be made the primary",
            "start them; SENTINEL RESET removes those that no longer exist",
        )


def _some(words: list[str]) -> str:
    rest = len(words) - MAX_NAMED
    return ", ".join(words[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
