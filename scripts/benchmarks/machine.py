"""On what it was measured."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.services import nats_binary, redis_binary

PACKAGES = ("statebroker", "redis", "hiredis", "msgpack", "pyzmq", "nats-py")


def machine() -> dict[str, str]:
    """Return what a reader wants to know of the machine, by name."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": _system(),
    }


def versions(server: str) -> dict[str, str]:
    """Return name -> version of everything that took part and is installed.

    Args:
        server: "redis" or "valkey".
    """
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found[f"{server}-server"] = _said([str(redis_binary(server)), "--version"], "v=")
    with contextlib.suppress(BenchmarkError):  # then nobody played on it
        found["nats-server"] = _said([str(nats_binary()), "--version"], "v")
    return found


def _said(command: list[str], mark: str) -> str:
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next(
        (word.removeprefix(mark) for word in told.split() if word.startswith(mark)), told.strip()
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.system()
    return f"{name}, kernel {platform.release()}"
