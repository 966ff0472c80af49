"""Options shared by the commands: their sources, and the report of all faults at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from broker.backend.credentials import first_line
from broker.backend.urls import EMBEDDED, has_password, redacted
from broker.config import SETTINGS, allowed, checked, checked_name, parse_setting
from broker.errors import BrokerError, ConfigError
from workers.cli.secrets import with_password_file
from workers.cli.terminal import Fault, safe

F = TypeVar("F", bound=Callable[..., Any])

PREFIX = "STATEBROKER_"
DEFAULT_FILE = "statebroker.toml"
CONNECTION_HELP = {
    "url": "Server: redis[s]://, redis[s]+cluster://, redis[s]+sentinel://, unix://, embedded://[DIR]",
    "password_file": "Read the password of the user from the first line of FILE, at each login.",
    "namespace": "Name of the state.",
}
LOGIN = "statebroker.login"
KNOWN = (*CONNECTION_HELP, *SETTINGS)
FAULTS = "statebroker.faults"
INTERRUPTED = 130  # exit status, as a shell tells of SIGINT
REQUIRES_SERVER = ("set", "get", "delete", "increment", "watch", "status", "verify", "doctor")
# Kubernetes sets such variables in every pod if a service is called statebroker.
_FOREIGN = re.compile(r"STATEBROKER_(SERVICE|PORT)(_.*)?")


class Commands(click.Group):
    """A command group that prints errors as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; print our errors and exit with 1, or with 2 for wrong settings.

        Ctrl-C ends it without a word, which might have to wait for a reader.
        """
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise click.UsageError("\n".join(map(safe, error.faults))) from error
        except (BrokerError, TimeoutError) as error:
            raise Fault(str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def config_file(command: F) -> F:
    """Add --config, a TOML file of settings."""

    def load(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        path = value or (DEFAULT_FILE if Path(DEFAULT_FILE).is_file() else None)
        lines, faults = read_file(Path(path)) if path else ({}, [])
        group = ctx.command
        names = group.list_commands(ctx) if isinstance(group, click.Group) else ()
        ctx.default_map = dict.fromkeys(names, lines)
        # Reported together with the faults of the options of the command.
        ctx.meta[FAULTS] = faults + environment_faults()

    return click.option(
        "--config",
        metavar="FILE",
        envvar=PREFIX + "CONFIG",
        callback=load,
        expose_value=False,
        help=f"Read settings from a TOML file.  [default: ./{DEFAULT_FILE} if it exists]",
    )(command)


def read_file(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the settings in a TOML file as text, and all faults in it."""
    try:
        lines = {name: str(value) for name, value in tomllib.loads(path.read_text("utf-8")).items()}
    except tomllib.TOMLDecodeError as error:
        return {}, [f"{path} is not TOML: {error}"]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"cannot read {path}: {error}"]
    faults = [
        f"{path}: unknown setting {name!r}; known: {', '.join(KNOWN)}"
        for name in lines
        if name not in KNOWN
    ]
    settings = {name: text for name, text in lines.items() if name in SETTINGS}
    return lines, faults + [f"{path}: {fault}" for fault in _read(settings)[1]]


def environment_faults() -> list[str]:
    """Return a fault for every variable that looks like a setting but is not one."""
    names = [name for name in os.environ if name.startswith(PREFIX)]
    return [
        f"unknown environment variable {name}; known: "
        + ", ".join(PREFIX + known.upper() for known in (*KNOWN, "config"))
        for name in sorted(names)
        if name.removeprefix(PREFIX).lower() not in (*KNOWN, "config")
        and not _FOREIGN.fullmatch(name)
    ]


def _read(texts: dict[str, str]) -> tuple[dict[str, float], list[str]]:
    """Parse settings; return the valid ones, and the faults of the others."""
    values: dict[str, float] = {}
    faults: list[str] = []
    for name, text in texts.items():
        try:
            values |= checked(**{name: parse_setting(name, text)})
        except ConfigError as error:
            faults += error.faults
        except ValueError as error:
            faults.append(str(error))
    return values, faults


def connection_options(command: F) -> F:
    """Add --url, --password-file and --namespace."""
    for name, default, settings in (
        ("namespace", "default", {}),
        # Read before the URL, which gets the password.
        ("password-file", None, {"is_eager": True, "expose_value": False, "callback": _password}),
        ("url", EMBEDDED, {"callback": _url}),
    ):
        known = name.replace("-", "_")
        command = click.option(
            f"--{name}",
            envvar=PREFIX + known.upper(),
            default=default,
            show_default=default is not None,
            metavar="FILE" if settings.get("is_eager") else None,
            help=CONNECTION_HELP[known],
            **settings,
        )(command)
    return command


def _password(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    if path is not None:
        try:
            first_line(path)
            ctx.meta[LOGIN] = path
        except ConfigError as error:
            _add_faults(ctx, error)


def _url(ctx: click.Context, param: click.Parameter, url: str) -> str:
    """Insert --password-file; refuse a password on the command line."""
    is_on_command_line = ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
    if is_on_command_line and has_password(url):
        fault = (
            f"url {redacted(url)!r} on the command line holds a password, which every user of this "
            "machine can read there; use --password-file, or (also for one of Sentinels) "
            "STATEBROKER_URL"
        )
        _add_faults(ctx, ConfigError([fault]))
    try:
        return with_password_file(url, ctx.meta[LOGIN]) if LOGIN in ctx.meta else url
    except ConfigError as error:
        _add_faults(ctx, error)
        return url


def _add_faults(ctx: click.Context, error: ConfigError) -> None:
    ctx.meta[FAULTS] = [*ctx.meta.get(FAULTS, ()), *error.faults]


def setting_options(*names: str) -> Callable[[F], F]:
    """Add one option for each setting, with its range and default in the help."""

    def add(command: F) -> F:
        for name in reversed(names):
            setting = SETTINGS[name]
            unit = {"s": "DURATION", "bytes": "BYTES"}.get(setting.unit, "N")
            low_high = allowed(name)
            default = "" if setting.default is None else f"; default {setting.default:.15g}"
            command = click.option(
                "--" + name.replace("_", "-"),
                name,
                envvar=PREFIX + name.upper(),
                metavar=unit,
                help=f"{setting.meaning.capitalize()}.  [{low_high}{default}]",
            )(command)
        return command

    return add


def checked_options(
    namespace: str, texts: dict[str, str | None] | None = None
) -> tuple[str, dict[str, Any], frozenset[str]]:
    """Return the namespace, all settings with defaults, and the names of those that were given.

    Raises:
        ConfigError: all faults of options, environment and file at once.
    """
    ctx = click.get_current_context()
    faults = list(ctx.meta.get(FAULTS, ()))
    given = {name: text for name, text in (texts or {}).items() if text is not None}
    values, found = _read(given)
    # Faults of the file were reported before, with its name.
    faults += [fault for fault in found if not any(fault in other for other in faults)]
    try:
        checked_name("namespace", namespace)
    except ConfigError as error:
        faults += error.faults
    if not faults and ctx.params.get("url") == EMBEDDED and ctx.command.name in REQUIRES_SERVER:
        faults.append(
            "no server: give --url or set STATEBROKER_URL; embedded:// without a directory would "
            "be a new, empty server for this command alone (use embedded:///DIRECTORY)"
        )
    if faults:
        raise ConfigError(faults)
    return namespace, checked(**dict.fromkeys(SETTINGS)) | values, frozenset(given)
