"""The process of one role: `python -m scripts.benchmarks.role_process MODULE FUNCTION`.

It imports the module at once, which takes most of its start, and waits for the order "start", which
brings its `RoleConfig`. So several roles and the services can start at the same time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import sys
from pathlib import Path

from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.processes import Process

MODULE = "scripts.benchmarks.role_process"


def launch_role(name: str, module: str, function: str, folder: Path) -> Process:
    """Start the process of a role; it waits for `start_role`.

    Args:
        name: of the process, unique in its run.
        module: full name of the module that holds the function.
        function: called with a `RoleConfig` and a `Link`; may be a coroutine function.
        folder: where its log is written.
    """
    command = [sys.executable, "-P", "-m", MODULE, module, function]
    return Process(name, command, folder, is_role=True)


def start_role(process: Process, config: RoleConfig) -> None:
    """Let a launched role begin; it reports when it is ready."""
    process.send("start", config=dataclasses.asdict(config))


def main(module: str, function: str) -> None:
    """Run a role to its end.

    Args:
        module: full name of the module.
        function: its name in the module.
    """
    role = getattr(importlib.import_module(module), function)
    link = Link()
    done = role(RoleConfig(**link.expect("start")["config"]), link)
    if inspect.iscoroutine(done):
        asyncio.run(done)


if __name__ == "__main__":
    main(*sys.argv[1:])
