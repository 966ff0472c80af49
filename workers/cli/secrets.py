"""Insert a password file into a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from broker.backend.urls import has_login, redacted
from broker.errors import ConfigError


def with_password_file(url: str, path: str) -> str:
    """Return a URL whose user's password is read from a file; that for Sentinels is not touched.

    Raises:
        ConfigError: the URL has a password already, or its server takes none.
    """
    if "://" not in url or url.startswith("embedded"):
        raise ConfigError([f"url {redacted(url)!r} takes no password; leave the password file out"])
    if has_login(url):
        raise ConfigError(
            [f"url {redacted(url)!r} has a password, and so has the password file; use one of them"]
        )
    place, _, options = url.partition("?")
    file = f"password_file={quote(str(Path(path).absolute()), safe='/')}"
    return f"{place}?{options}&{file}" if options else f"{place}?{file}"
