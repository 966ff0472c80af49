"""docker-compose.yml as it is written: its services, and the options of its servers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
_STORED = {"redis-server", "store.conf"}


def services() -> dict[str, dict[str, Any]]:
    """Return every service, with its anchors merged and the defaults of its variables."""
    text = VARIABLE.sub(lambda found: found[2], TEXT)
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def server_options(service: str) -> list[str]:
    """Return the options with which a service starts its redis-server, as words."""
    script = services()[service]["command"][-1].replace("$$", "$")
    command = re.search(r"exec (redis-server (?:[^\n]*\\\n)*[^\n]*)", script)
    assert command is not None, script
    words = shlex.split(command[1].replace("\\\n", " "))
    return [word for word in words if word not in _STORED]


def options_of(service: str) -> dict[str, str]:
    """Return the same by name, without the dashes."""
    words = server_options(service)
    return {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}
