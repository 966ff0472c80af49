"""The command line: `statebroker COMMAND`."""

from __future__ import annotations

import click

from broker import __version__
from workers.cli.acl import acl
from workers.cli.content import delete, get, increment, set_key, watch
from workers.cli.doctor import doctor
from workers.cli.log import log_for_people
from workers.cli.options import Commands, config_file
from workers.cli.repair import repair
from workers.cli.serving import flush, schedule, serve
from workers.cli.settings import config
from workers.cli.status import status
from workers.cli.tables import tables
from workers.cli.terminal import accept_any_terminal
from workers.cli.verify import verify


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (
    serve,
    flush,
    schedule,
    set_key,
    get,
    delete,
    increment,
    watch,
    tables,
    status,
    verify,
    repair,
    doctor,
    acl,
    config,
):
    statebroker.add_command(command)
