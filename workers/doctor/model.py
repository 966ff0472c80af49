"""What was seen of a server, and what is said about it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


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
    """

    check: str
    severity: Severity
    seen: str
    consequence: str = ""
    fix: str = ""


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
