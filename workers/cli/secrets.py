"""Passwords: read them from files, insert them into URLs, detect them on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, quote

from broker.backend.urls import redacted
from broker.errors import ConfigError

_LOGIN = re.compile(r"(?P<scheme>[a-z+]+://)(?:(?P<login>[^/]*)@)?(?P<rest>.*)", re.IGNORECASE)


def has_password(url: str) -> bool:
    """Whether a URL holds a password: before the host, as an option, or for Sentinels."""
    return _has_login(url) or "sentinel_password" in _options(url)


def _has_login(url: str) -> bool:
    """Whether a URL holds the password for the data servers."""
    login = ((match := _LOGIN.fullmatch(url)) is not None and match["login"]) or ""
    return bool(login.partition(":")[2]) or "password" in _options(url)


def _options(url: str) -> set[str]:
    """Return the names of the options that have a value."""
    return set(parse_qs(url.partition("?")[2]))


def with_password(url: str, password: str) -> str:
    """Return a URL with this password of its user; that for Sentinels is not touched.

    Raises:
        ConfigError: the URL has a password already, or its server takes none.
    """
    match = _LOGIN.fullmatch(url)
    if match is None or match["scheme"].startswith("embedded"):
        raise ConfigError([f"url {redacted(url)!r} takes no password; leave the password file out"])
    if _has_login(url):
        raise ConfigError(
            [f"url {redacted(url)!r} has a password, and so has the password file; use one of them"]
        )
    user = (match["login"] or "").partition(":")[0]
    return f"{match['scheme']}{user}:{quote(password, safe='')}@{match['rest']}"


def first_line(path: str) -> str:
    """Return the first line of a password file.

    Raises:
        ConfigError: it cannot be read, or the line is empty.
    """
    try:
        line, *_ = [*Path(path).read_text("utf-8").splitlines(), ""]
    except (OSError, UnicodeDecodeError) as error:
        # A decoding error would show a part of the password.
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([f"cannot read the password file {path}: {why}"]) from None
    if not line:
        raise ConfigError([f"the password file {path} has no password in its first line"])
    return line
