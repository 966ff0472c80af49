"""The `embedded://` URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

PREFIX = "embedded://"


def parse_embedded_url(url: str) -> Path | None:
    """Return the data directory that an `embedded://` URL names.

    Args:
        url: `embedded://` (a private server), `embedded:///absolute/directory`, or
            `embedded://relative/directory`; percent escapes stand for single characters.

    Returns:
        The directory as written, relative ones relative to the working directory; None for a
        private server.

    Raises:
        ValueError: It is not such a URL, or has parts that are not supported.
    """
    if not url.startswith(PREFIX):
        raise ValueError(f"{url!r} does not start with {PREFIX}")
    rest = url.removeprefix(PREFIX)
    if not rest:
        return None
    if "?" in rest or "#" in rest:
        raise ValueError(
            "an embedded:// URL takes no ?query and no #fragment (write %3F or %23 if "
            "the name of the directory contains one)"
        )
    host = rest.partition("/")[0]
    if ":" in host or "@" in host:
        raise ValueError("an embedded:// URL has no host, port or password; name a directory")
    if host == "~":
        raise ValueError(
            f"{url!r}: ~ is not expanded in a URL; write the full path of the directory"
        )
    directory = unquote(rest)
    if "\0" in directory:
        raise ValueError(f"{url!r}: a directory's name cannot hold a NUL")
    if not directory.strip("/"):
        raise ValueError(f"{url!r} names the root directory; name a directory for the data")
    return Path(directory)
