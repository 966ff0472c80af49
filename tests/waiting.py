"""Waiting for a condition, so that no test sleeps and hopes."""

from scripts.servers.waiting import POLL_SECONDS, eventually

__all__ = ["POLL_SECONDS", "eventually"]
