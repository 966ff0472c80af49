"""`serve`, `flush` and `schedule`: the worker processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.config import conflicts
from broker.errors import ConfigError
from broker.runtime import eventloop
from workers.cli.log import log_to_stderr
from workers.cli.options import checked_options, connection_options, setting_options
from workers.serve import Roles
from workers.serve import serve as run

F = TypeVar("F", bound=Callable[..., Any])

ALL = (
    "local_delta_max_age",
    "local_delta_max_count",
    "global_data_update_interval",
    "heartbeat_interval",
    "staleness_bound",
    "shards",
    "log_bytes",
    "log_retention",
    "max_keys",
    "max_state_bytes",
)
FOR_FLUSH = (
    "local_delta_max_age",
    "local_delta_max_count",
    "heartbeat_interval",
    "staleness_bound",
    "shards",
    "log_bytes",
)
FOR_SCHEDULE = (
    "global_data_update_interval",
    "shards",
    "log_bytes",
    "log_retention",
    "max_keys",
    "max_state_bytes",
)


def _process_options(command: F) -> F:
    command = click.option("--verbose", "-v", is_flag=True, help="Log every batch.")(command)
    return click.option(
        "--ready-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write the URL for clients to FILE once everything runs; remove it at the end.",
    )(command)


@click.command()
@connection_options
@setting_options(*ALL)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of flush workers; each after the first is a process of its own.",
)
@_process_options
def serve(
    url: str,
    namespace: str,
    workers: int,
    ready_file: Path | None,
    verbose: bool,  # noqa: FBT001 - how click calls
    **texts: str | None,
) -> None:
    """Run all workers that a namespace needs.

    They publish deltas and write the full state. Runs until SIGTERM or Ctrl-C and stops within 2
    seconds. Run it on as many machines as you
    like: flush workers share the work, one scheduler writes and the others are standbys.

    It waits for a server that is not reachable, also at the start; it exits at once if the
    settings or the password are wrong or the server is not supported. Each worker subscribes to
    its own packets: if none arrive it logs health_red with the reason, `statebroker status`
    shows it red and `status --check` exits with 1, until packets arrive again.

    \b
    Durations: 50ms, 10s, 1m, 1h, or seconds. --staleness-bound is that of
    your replicas: settings that can never keep it are refused. Thresholds that are given are stored
    in the namespace; without them its thresholds stay.

    \b
    Example:
      statebroker serve --url redis://localhost --namespace fleet --workers 2
    """  # noqa: D301 - click reads the escapes
    _run(
        url,
        namespace,
        Roles(flush=True, schedule=True, helpers=workers - 1),
        texts,
        ready_file,
        verbose,
    )


@click.command()
@connection_options
@setting_options(*FOR_FLUSH)
@_process_options
def flush(
    url: str,
    namespace: str,
    ready_file: Path | None,
    verbose: bool,  # noqa: FBT001 - how click calls
    **texts: str | None,
) -> None:
    """Run a flush worker, which only publishes deltas. A `schedule` must run too.

    \b
    Example:
      statebroker flush --url redis://localhost --local-delta-max-age 20ms
    """  # noqa: D301 - click reads the escapes
    _run(url, namespace, Roles(flush=True, schedule=False), texts, ready_file, verbose)


@click.command()
@connection_options
@setting_options(*FOR_SCHEDULE)
@_process_options
def schedule(
    url: str,
    namespace: str,
    ready_file: Path | None,
    verbose: bool,  # noqa: FBT001 - how click calls
    **texts: str | None,
) -> None:
    """Run a scheduler, which only writes the full state. A `flush` must run too.

    \b
    Example:
      statebroker schedule --url redis://localhost --global-data-update-interval 30s
    """  # noqa: D301 - click reads the escapes
    _run(url, namespace, Roles(flush=False, schedule=True), texts, ready_file, verbose)


def _run(  # noqa: PLR0917 - the options of three commands
    url: str,
    namespace: str,
    roles: Roles,
    texts: dict[str, str | None],
    ready_file: Path | None,
    verbose: bool,  # noqa: FBT001 - passed through
) -> None:
    _, settings, given = checked_options(namespace, texts)
    # Of a default value nobody knows whether replicas have another one: that is a warning.
    if faults := conflicts({name: settings[name] for name in given}):
        raise ConfigError(list(map(str, faults)))
    log_to_stderr(logging.DEBUG if verbose else logging.INFO)
    eventloop.run(run(url, namespace, roles, settings, given=given, ready_file=ready_file))
