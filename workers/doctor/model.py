"""Facts about servers, and findings about them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from broker.backend.urls import Kind


class Severity(IntEnum):
    """How serious a finding is, in increasing order."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        """Return the name in lower case."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check, one word.
        severity: OK (nothing to do), NOTE (good to know), WARNING (a promise is weaker than you may
            expect), ERROR (it does not work, or loses data in normal operation).
        seen: the facts, with their values.
        consequence: empty for OK.
        fix: a command to run, or what to do; empty for OK.
        servers: addresses of the servers it applies to; empty for a single server, and for the
            deployment as a whole.
    """

    check: str
    severity: Severity
    seen: str
    consequence: str = ""
    fix: str = ""
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one server; what the user may not read is None or empty.

    Attributes:
        url: of the server, without its password.
        unreachable: why it could not be examined; then the other facts are void.
        is_tls: whether the connection is encrypted.
        is_local: whether the connection does not leave this machine.
        has_password: whether the URL has a password.
        info: INFO, all permitted sections.
        config: CONFIG GET of the relevant names; None if not permitted.
        clock_s: clock of the server minus ours, in seconds; None if not permitted.
        clock_error_s: measurement error, half the round trip.
        script_error: why scripts do not run; "" if they do, None if not permitted.
        user: the user that we are logged in as.
        lacking: role -> the rights ("command key") that the user lacks for it; empty if unknown.
        untested: rights that could be neither asked for nor tried.
        surplus: commands that no role needs, which the user may call.
        wanted: the roles that the user should have.
        namespace: whose keys were tested.
        node: whose stage was tested.
        published_bytes_per_s: publishing rate of the shards of the namespace.
        largest_batch: bytes, maximum size of a batch.
        kind: of the deployment that it belongs to.
        at: its address in the deployment; "" for a single server.
        primary: the server that it should replicate; "" if it should be a primary.
        slots: first and last of each range of slots that it owns.
        cluster: CLUSTER INFO; empty if not a Cluster node or not permitted.
        databases: numbers of other databases that hold the same namespace.
        shared_channels: channels of the namespace without the number of a database, which programs
            of earlier versions share across databases -> how many connections hear them.
    """

    url: str
    unreachable: str | None = None
    is_tls: bool = False
    is_local: bool = True
    has_password: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, str] | None = None
    clock_s: float | None = 0.0
    clock_error_s: float = 0.0
    script_error: str | None = ""
    user: str = "default"
    lacking: Mapping[str, list[str]] = field(default_factory=dict)
    untested: frozenset[str] = frozenset()
    surplus: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    namespace: str = "default"
    node: str = "doctor"
    published_bytes_per_s: float = 0.0
    largest_batch: int = 1 << 20
    kind: Kind = "single"
    at: str = ""
    primary: str = ""
    slots: tuple[tuple[int, int], ...] = ()
    cluster: Mapping[str, str] = field(default_factory=dict)
    databases: tuple[int, ...] = ()
    shared_channels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SentinelFacts:
    """The facts of one Sentinel.

    Attributes:
        at: its address.
        unreachable: why it could not be examined; then the other facts are void.
        primary: the server that it considers the primary.
        flags: its flags for the primary, such as "master,s_down".
        quorum: how many must see the primary as down before a failover begins.
        others: how many other sentinels it knows.
        replicas: address -> flags, of each replica that it knows.
        trouble: why a failover is not possible now; "" if it is.
    """

    at: str
    unreachable: str | None = None
    primary: str = ""
    flags: str = "master"
    quorum: int = 0
    others: int = 0
    replicas: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """The facts of a whole deployment.

    Attributes:
        url: of the deployment, without its password.
        kind: of the deployment.
        servers: all data servers, unreachable ones included.
        sentinels: all sentinels.
        unreachable: why the servers could not be listed; then there are none.
        heartbeat_s: longest heartbeat interval of a shard's workers; 0: not known.
        max_age_s: longest age threshold of a shard; 0: not known.
        refusal: why this release cannot use the namespace, and the fix; empty if it can.
    """

    url: str
    kind: Kind
    servers: tuple[Facts, ...] = ()
    sentinels: tuple[SentinelFacts, ...] = ()
    unreachable: str | None = None
    heartbeat_s: float = 0.0
    max_age_s: float = 0.0
    refusal: str = ""
