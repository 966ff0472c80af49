"""The settings of producers and replicas, checked; what may not fit is logged."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from broker.config import checked_of, conflicts

log = logging.getLogger(__name__)


def checked_settings(names: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among `names`, with defaults filled in.

    A default that does not fit a given value is logged: there may be no need of what breaks.

    Raises:
        ConfigError: as `checked_of`.
    """
    values = checked_of(names, given)
    warn_of_conflicts(values)
    return values


def warn_of_conflicts(settings: Mapping[str, Any]) -> None:
    """Log what these settings break together; it may be right, so the caller goes on."""
    for conflict in conflicts(settings):
        log.warning("settings_conflict %s", conflict)
