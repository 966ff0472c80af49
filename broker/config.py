"""Settings: one table of names, units, ranges and defaults, and their validation."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.errors import ConfigError
from broker.protocol.constants import MAX_NAME_LENGTH, MAX_SHARDS
from broker.protocol.frames import MAX_LEVEL
from broker.protocol.names import is_name
from broker.protocol.refusal import shown

_DURATION = re.compile(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(ms|s|m|h)?")
DAY_S: Final = 86400.0
LONGEST_AGE_S: Final = 3650 * DAY_S
_SECONDS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its meaning, unit, range and default.

    Attributes:
        default: None if it is chosen elsewhere, see `meaning`.
        low: smallest allowed value.
        high: largest allowed value.
        unit: "s" (seconds), "bytes", or "" for a count.
        meaning: for the help text.
    """

    default: float | None
    low: float
    high: float
    unit: str
    meaning: str


SETTINGS: Final[Mapping[str, Setting]] = {
    "local_delta_max_age": Setting(
        0.05, 0.0, 3600.0, "s", "how long a delta may wait before it is published"
    ),
    "local_delta_max_count": Setting(
        1000, 1, 100_000, "", "number of pending deltas of one node that makes them due"
    ),
    "global_data_update_interval": Setting(
        10.0, 0.1, 86400.0, "s", "how often the full state is written"
    ),
    "shards": Setting(
        1, 1, MAX_SHARDS, "", "number of shards; fixed when the namespace is created"
    ),
    "heartbeat_interval": Setting(
        1.0, 0.05, 60.0, "s", "how often the head of a quiet shard is published"
    ),
    "staleness_bound": Setting(
        3.0, 0.1, 3600.0, "s", "how long nothing may arrive before a replica is no longer live"
    ),
    "self_check_interval": Setting(
        300.0, 0.0, 86400.0, "s", "how often a replica verifies itself against Redis; 0: never"
    ),
    "linger": Setting(
        0.002, 0.0, 60.0, "s", "how long a producer collects deltas; at most a tenth of the max age"
    ),
    "chunk_bytes": Setting(256 << 10, 1024, 4 << 20, "bytes", "size at which a chunk is sent"),
    "compress": Setting(
        1, 0, MAX_LEVEL, "", "level at which a producer compresses chunks; 0: it does not"
    ),
    "buffer_bytes": Setting(
        64 << 20,
        1024,
        1 << 40,
        "bytes",
        "maximum size of deltas that a producer buffers until Redis accepts them",
    ),
    "full_timeout": Setting(30.0, 0.0, 86400.0, "s", "how long a full buffer blocks the caller"),
    "keep_seconds": Setting(
        60.0, 0.0, 86400.0, "s", "how long accepted chunks are kept in case Redis loses them"
    ),
    "keep_bytes": Setting(
        64 << 20, 0, 1 << 40, "bytes", "maximum size of accepted chunks that are kept"
    ),
    "pending_bytes": Setting(
        64 << 20, 1024, 1 << 40, "bytes", "maximum size of pending chunks in one shard"
    ),
    "log_bytes": Setting(
        256 << 20, 1 << 20, 1 << 40, "bytes", "maximum size of the log of one shard"
    ),
    "max_keys": Setting(
        0, 0, 1 << 50, "", "maximum number of keys of the namespace; 0: any (tables not counted)"
    ),
    "max_state_bytes": Setting(
        0, 0, 1 << 50, "bytes", "maximum memory of the full state in Redis; 0: any"
    ),
    "log_retention": Setting(
        60.0, 0.0, 86400.0, "s", "how long log entries are kept after a snapshot contains them"
    ),
}


def parse_setting(name: str, text: str) -> float:
    """Parse a setting: a number, or for durations also `50ms`, `10s`, `1m`, `1h`.

    Raises:
        ValueError: the text is invalid; the message names the allowed range.
    """
    setting = SETTINGS[name]
    match = _DURATION.fullmatch(text.strip())
    if match is None or (match[2] and setting.unit != "s"):
        raise ValueError(f"{name}={text!r} is not {_kind(setting)}; allowed: {allowed(name)}")
    return float(match[1]) * _SECONDS[match[2]]


def checked_age(name: str, text: str) -> float:
    """Return a duration as `parse_setting` reads it, or in days (`7d`), in seconds.

    Raises:
        ConfigError: it is none, or below a second or above ten years.
    """
    match = _DURATION.fullmatch(text.strip())
    days = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*d", text.strip())
    seconds = float(days[1]) * DAY_S if days else 0.0
    if match is not None:
        seconds = float(match[1]) * _SECONDS[match[2]]
    if not 1 <= seconds <= LONGEST_AGE_S:
        raise ConfigError([f"{name} {shown(text)}; allowed: 1s to 3650d, as 90m, 12h or 7d"])
    return seconds


def checked(**given: Any) -> dict[str, Any]:
    """Return settings with defaults filled in; report all faults at once.

    Args:
        given: settings by name; None means the default.

    Raises:
        ConfigError: unknown names, wrong types or values out of range, each with what is allowed.
    """
    faults = []
    result: dict[str, Any] = {}
    for name, value in given.items():
        if name not in SETTINGS:
            faults.append(f"unknown setting {name!r}; known: {', '.join(sorted(SETTINGS))}")
            continue
        setting = SETTINGS[name]
        result[name] = setting.default if value is None else value
        if value is None:
            continue
        whole = setting.unit != "s"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            faults.append(f"{name}={value!r} is not {_kind(setting)}; allowed: {allowed(name)}")
        elif not setting.low <= value <= setting.high:
            faults.append(f"{name}={value:.15g} is out of range; allowed: {allowed(name)}")
        elif whole and value != int(value):
            faults.append(f"{name}={value:.15g} is not a whole number; allowed: {allowed(name)}")
        elif whole:
            result[name] = int(value)
    if faults:
        raise ConfigError(faults)
    return result


# Each pair: a setting, how often it has to fit into the other one, and what happens if it does not.
_PAIRS: Final = (
    ("heartbeat_interval", 2, "staleness_bound", "replicas are stale between two heartbeats"),
    ("local_delta_max_age", 1, "staleness_bound", "replicas are stale while a delta waits"),
    ("chunk_bytes", 1, "buffer_bytes", "the buffer is full before a chunk is"),
    ("chunk_bytes", 1, "pending_bytes", "a shard takes a single chunk at a time"),
)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two settings that are allowed, and break something together.

    Attributes:
        settings: both, with their values.
        effect: what breaks.
        fix: what to set.
    """

    settings: str
    effect: str
    fix: str

    def __str__(self) -> str:
        """Return one sentence."""
        return f"{self.settings}: {self.effect}; {self.fix}"


def conflicts(values: Mapping[str, Any]) -> list[Conflict]:
    """Return what settings break together though each is allowed; empty if nothing.

    Args:
        values: by name; pairs of which one is missing are not compared.
    """
    return [
        Conflict(
            f"{small}={values[small]:.15g} and {large}={values[large]:.15g}",
            effect,
            f"set {small} to at most {values[large] / times:.15g}, or raise {large}",
        )
        for small, times, large, effect in _PAIRS
        if small in values and large in values and values[small] * times > values[large]
    ]


def unfit(heartbeat_s: float, max_age_s: float, staleness_bound: float) -> list[Conflict]:
    """Return how settings of running workers break a staleness bound; empty if they do not.

    Args:
        heartbeat_s: their `heartbeat_interval`; 0: not known.
        max_age_s: the namespace's `local_delta_max_age`; 0: not known.
        staleness_bound: of a replica.
    """
    values = {"staleness_bound": staleness_bound}
    if heartbeat_s:
        values["heartbeat_interval"] = heartbeat_s
    if max_age_s:
        values["local_delta_max_age"] = max_age_s
    return conflicts(values)


def checked_of(names: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among `names`, with defaults filled in; report all faults at once.

    Args:
        names: parameters of the caller; those that are not settings are ignored.
        given: by name; None means the default.

    Raises:
        ConfigError: as `checked`, for names that are not parameters of the caller, and for given
            settings that break each other.
    """
    faults = [
        f"unknown setting {name!r}; known: {', '.join(sorted(names))}"
        for name in given
        if name not in names
    ]
    try:
        values = checked(**{name: given.get(name) for name in names if name in SETTINGS})
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    both_given = {name: values[name] for name in values if given.get(name) is not None}
    faults += map(str, conflicts(both_given))
    if faults:
        raise ConfigError(faults)
    return values


def checked_name(kind: str, name: object) -> str:
    """Return a namespace or node name if it is valid.

    Raises:
        ConfigError: empty, over 64 characters, or not only letters, digits, `_`, `.`, `-`.
    """
    if not isinstance(name, str) or not is_name(name):
        raise ConfigError(
            [f"{kind} {name!r} is not a name; use 1 to {MAX_NAME_LENGTH} letters, digits, _ . -"]
        )
    return name


def chosen_namespace(name: object) -> str:
    """Return the namespace that a caller gave, or else STATEBROKER_NAMESPACE, or else `default`.

    Raises:
        ConfigError: it is no name, see `checked_name`; or the variable is empty.
    """
    if name is None:
        name = os.environ.get("STATEBROKER_NAMESPACE", "default")
        if not name:
            fix = "set it to the name of a namespace, or unset it for 'default'"
            raise ConfigError([f"STATEBROKER_NAMESPACE is empty; {fix}"])
    return checked_name("namespace", name)


def checked_flag(name: str, value: object) -> bool:
    """Return an argument that is true or false.

    Raises:
        ConfigError: another type, which might mean either.
    """
    if not isinstance(value, bool):
        raise ConfigError([f"{name}={shown(value)}; allowed: True or False"])
    return value


def checked_timeout(timeout: object) -> float | None:
    """Return the argument of a call that waits, if it is one: seconds, or None for no limit.

    Raises:
        ConfigError: another type, or not a number.
    """
    if timeout is None:
        return None
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or timeout != timeout:  # noqa: PLR0124 - nan
        raise ConfigError([f"timeout is {shown(timeout)}; allowed: seconds as a number, or None"])
    return float(timeout)  # type: ignore[arg-type]


def default_node() -> str:
    """Return a unique node name: host, process id and a random part."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", platform.node())[:32] or "host"
    return f"{host}-{os.getpid()}-{os.urandom(3).hex()}"


def allowed(name: str) -> str:
    """Return the range of a setting with its unit."""
    setting = SETTINGS[name]
    unit = {"s": " seconds", "bytes": " bytes"}.get(setting.unit, "")
    return f"{setting.low:.15g} to {setting.high:.15g}{unit}"


def _kind(setting: Setting) -> str:
    return "a duration in seconds" if setting.unit == "s" else "a whole number"
