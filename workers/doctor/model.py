"""What was seen of a server, and what is said about it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from broker.backend.urls import Kind


class Severity(IntEnum):
    """How bad a finding is; the larger the worse."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        """Its name in small letters."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what it is about, one word.
        severity: OK (nothing to do), NOTE (know it), WARNING (a promise is weaker than you may
            think), ERROR (it does not work, or data is lost in normal running).
        seen: what was seen, with its values.
        consequence: what follows; empty for OK.
        fix: a command to run, or what to do; empty for OK.
        servers: of which servers of a deployment it was seen; empty for the only one, and for what
            concerns all of them together.
    """

    check: str
    severity: Severity
    seen: str
    consequence: str = ""
    fix: str = ""
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What one server showed; a thing that the user may not ask for is None or empty.

    Attributes:
        url: of the server, without its password.
        unreachable: why it could not be asked at all; then nothing else holds.
        is_tls: whether the connection is encrypted.
        is_local: whether it does not leave this machine.
        has_password: whether we came with one.
        info: INFO, all sections that were allowed.
        config: CONFIG GET of the names that matter; None if that is not allowed.
        clock_s: the server's clock minus ours, in seconds.
        clock_doubt_s: how far off that may be: half the round trip.
        script_error: why scripts do not run; "" if they do, None if this user may not try.
        user: as whom we came.
        lacking: role -> the rights ("command key") that this user lacks for it; empty if it could
            not be found out.
        is_owner: whether the user may do what no role needs.
        wanted: the roles that this user is meant to have.
        namespace: which namespace's keys were tried.
        node: whose pending list was tried.
        published_bytes_per_s: what the shards of the namespace published lately.
        largest_batch: bytes, the most that a flush worker publishes at once.
        kind: of the deployment that it belongs to.
        at: its address there; "" for the only one.
        primary: whom it is meant to follow; "" if it is meant to be a primary.
        slots: first and last of each range of slots that it owns.
        cluster: CLUSTER INFO; empty if it is no node, or that is not allowed.
    """

    url: str
    unreachable: str | None = None
    is_tls: bool = False
    is_local: bool = True
    has_password: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, str] | None = None
    clock_s: float = 0.0
    clock_doubt_s: float = 0.0
    script_error: str | None = ""
    user: str = "default"
    lacking: Mapping[str, list[str]] = field(default_factory=dict)
    is_owner: bool = False
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


@dataclass(frozen=True, slots=True)
class SentinelFacts:
    """What one Sentinel said.

    Attributes:
        at: its address.
        unreachable: why it could not be asked; then nothing else holds.
        primary: whom it takes for the primary.
        flags: what it says of that, such as "master,s_down".
        quorum: how many have to miss the primary before a failover begins.
        others: how many other sentinels it knows.
        replicas: address -> flags, of each replica that it knows.
        trouble: why it could not have a failover done now; "" if it could.
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
    """What a whole deployment showed.

    Attributes:
        url: of the deployment, without its password.
        kind: of the deployment.
        servers: every one that holds data, those that could not be asked included.
        sentinels: every one that watches them.
        unreachable: why it could not be told which servers there are; then there are none here.
    """

    url: str
    kind: Kind
    servers: tuple[Facts, ...] = ()
    sentinels: tuple[SentinelFacts, ...] = ()
    unreachable: str | None = None
