"""The machine and the versions that were measured."""

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
    """Return property -> value of this machine."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": _system(),
    }


def versions(server: str) -> dict[str, str]:
    """Return name -> version of every program and package that is measured and installed.

    Args:
        server: "redis" or "valkey".
    """
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found[f"{server}-server"] = _tool_version([str(redis_binary(server)), "--version"], "v=")
    with contextlib.suppress(BenchmarkError):  # then no contender used it
        found["nats-server"] = _tool_version([str(nats_binary()), "--version"], "v")
    return found


def _tool_version(command: list[str], mark: str) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next(
        (word.removeprefix(mark) for word in output.split() if word.startswith(mark)),
        output.strip(),
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
