"""Ours, a table with text keys, ten thousand numbers in each call."""

from __future__ import annotations

import dataclasses

from scripts.benchmarks.contenders import statebroker_table
from scripts.benchmarks.contenders.statebroker_table import read
from scripts.benchmarks.link import Link, RoleConfig

__all__ = ["read", "write"]


def write(config: RoleConfig, link: Link) -> None:
    """Set column by column, each ten times as long."""
    statebroker_table.write(dataclasses.replace(config, details={"column": 10_000}), link)
