"""The command line: `statebroker COMMAND`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

import click

from broker import __version__
from workers.cli.log import log_for_people
from workers.cli.options import Commands, config_file
from workers.cli.terminal import accept_any_terminal

# Module and function of each command. A command is imported when it is used: all of them together
# would take 0.4 s of CPU.
HOMES: Final[Mapping[str, tuple[str, str]]] = {
    "acl": ("acl", "acl"),
    "config": ("settings", "config"),
    "delete": ("content", "delete"),
    "doctor": ("doctor", "doctor"),
    "flush": ("serving", "flush"),
    "get": ("content", "get"),
    "increment": ("content", "increment"),
    "repair": ("repair", "repair"),
    "schedule": ("serving", "schedule"),
    "serve": ("serving", "serve"),
    "set": ("content", "set_key"),
    "status": ("status", "status"),
    "tables": ("tables", "tables"),
    "verify": ("verify", "verify"),
    "watch": ("content", "watch"),
}


class AllCommands(Commands):
    """Every command of `HOMES`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in alphabetical order."""
        return sorted(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command; None if there is no such command."""
        return command(cmd_name) if cmd_name in HOMES else None


def command(name: str) -> click.Command:
    """Import a command of `HOMES`."""
    module, function = HOMES[name]
    found: click.Command = getattr(import_module(f"{__name__}.{module}"), function)
    return found


@click.group(cls=AllCommands, context_settings={"help_option_names": ["-h", "--help"]})
@config_file
@click.version_option(__version__, prog_name="statebroker")
def statebroker() -> None:
    """Live shared state for Python fleets, over the Redis they already run.

    \b
    Producers write deltas, flush workers publish them in batches, every
    subscriber holds a live copy, and a scheduler writes the full state.

    \b
    Examples, in three terminals:
      statebroker serve --url embedded://./data
      statebroker watch --url embedded://./data
      statebroker set --url embedded://./data door open

    Every option can also be set by an environment variable (--local-delta-max-age is
    STATEBROKER_LOCAL_DELTA_MAX_AGE) or in statebroker.toml (local_delta_max_age = "50ms").
    Options take precedence over the environment, and the environment over the file;
    `statebroker config` shows each value and its source. Give a password with --password-file,
    or in a URL from the environment or the file; on the command line, where every user of the
    machine can read it, it is refused.
    """  # noqa: D301 - click reads the escapes
    accept_any_terminal()
    log_for_people()
