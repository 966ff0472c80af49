"""The engine and Compose, or the reason why there is none."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest

COMMANDS = ("docker compose", "docker-compose")


def answers(command: str) -> bool:
    """Return whether a command is there and succeeds."""
    words = command.split()
    if shutil.which(words[0]) is None:
        return False
    try:
        return subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@functools.cache
def compose_command() -> str:
    """Return Compose 2, or 1.29 where there is no other; skip where no engine answers."""
    reason = None
    found = [command for command in COMMANDS if answers(f"{command} version")]
    if not answers("docker info"):
        reason = "no Docker engine answers; scripts/engine start"
    elif not found:
        reason = "neither docker compose nor docker-compose is there"
    if reason is not None:
        # Where an engine was promised, a skip would hide that nothing was tested.
        (pytest.fail if os.environ.get("ENGINE_REQUIRED") else pytest.skip)(reason)
    return os.environ.get("COMPOSE", found[0])
