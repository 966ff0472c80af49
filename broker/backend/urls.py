"""Parse URLs: the kind of deployment, the seed addresses, and a form without the password.

    redis:// rediss:// unix://                                one server
    redis+cluster://[user:password@]host[:port][,...]         a Redis Cluster, by any of its nodes
    redis+sentinel://[user:password@]host[:port][,...]/service[/db]     a primary, by its Sentinels

`rediss+cluster` and `rediss+sentinel` use TLS for every server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from broker.backend.credentials import first_line
from broker.backend.tls import FILES, tls_faults
from broker.errors import ConfigError

Kind = Literal["single", "cluster", "sentinel"]

SCHEMES: Final = (
    *("embedded", "redis", "rediss", "unix"),
    *("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"),
)

URL_OPTIONS: Final = {
    *("db", "client_name", "username", "password", "password_file"),
    *(*FILES, "ssl_check_hostname", "ssl_cert_reqs"),
}
SENTINEL_OPTIONS: Final = {"sentinel_username", "sentinel_password", "sentinel_password_file"}

URL_VARIABLE: Final = "STATEBROKER_URL"
EMBEDDED: Final = "embedded://"

# A port that is no number is reported when it is read.
_NAME_OR_ADDRESS: Final = r"(?:[\w.-]*|\[[\w:.%]+\])(?::\w*)?"

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Host and port of one server."""

    host: str
    port: int

    def __str__(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisURL:
    """A parsed URL.

    Attributes:
        kind: of deployment.
        url: as given.
        seeds: nodes or sentinels to ask first; empty for a single server.
        service: the name under which Sentinels monitor the primary, else "".
    """

    kind: Kind
    url: str = field(repr=False)  # it may hold a password
    seeds: tuple[Address, ...] = ()
    service: str = ""

    def node_url(self, address: Address) -> str:
        """Return the URL of one data server, with the same user, password and options."""
        parts = urlsplit(self.url)
        login = parts.netloc.rpartition("@")[0]
        db = unquote(parts.path).strip("/").partition("/")[2] if self.kind == "sentinel" else ""
        return _joined(parts.scheme, login, address, db, _options(parts.query, URL_OPTIONS))

    def sentinel_url(self, address: Address) -> str:
        """Return the URL of one sentinel, with the login for sentinels and the same TLS."""
        parts = urlsplit(self.url)
        given = {name: values[0] for name, values in parse_qs(parts.query).items()}
        password = quote(given.get("sentinel_password", ""), safe="")
        login = quote(given.get("sentinel_username", ""), safe="") + (password and f":{password}")
        options = {name for name in URL_OPTIONS if name.startswith("ssl_")}
        query = _options(parts.query, options)
        if file := given.get("sentinel_password_file"):
            query += f"{'&' if query else '?'}password_file={quote(file, safe='/')}"
        return _joined(parts.scheme, login, address, "", query)


def _joined(scheme: str, login: str, address: Address, db: str, options: str) -> str:
    at = "@" if login else ""
    return f"{scheme.partition('+')[0]}://{login}{at}{address}/{db}{options}"


def _options(query: str, wanted: set[str]) -> str:
    kept = [one for one in query.split("&") if unquote(one.partition("=")[0]) in wanted]
    return "?" + "&".join(kept) if kept else ""


def chosen_url(url: object) -> str:
    """Return the URL that a caller gave, or else STATEBROKER_URL, or else `embedded://`.

    Raises:
        ConfigError: it is no text, or an empty one; or the variable is empty.
    """
    if url is None:
        url = os.environ.get(URL_VARIABLE, EMBEDDED)
        if not url:
            fix = f"set it to the server's URL, or unset it for {EMBEDDED}"
            raise ConfigError([f"{URL_VARIABLE} is empty; {fix}"])
        return url
    if not isinstance(url, str):
        # Not shown: a client of another library shows its password.
        raise ConfigError([f"url is a {type(url).__name__}; give the server's URL as str"])
    if not url:
        raise ConfigError(
            [f"url is empty; give the server's URL, or None for {URL_VARIABLE}, else {EMBEDDED}"]
        )
    return url


def read_url(url: str) -> RedisURL:
    """Parse and check a URL without connecting.

    Raises:
        ConfigError: the scheme, host, port, service, database or an option is invalid, or a TLS
            file cannot be read.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "://" not in url:
        raise ConfigError(
            [
                f"url {redacted(url)!r} has no known scheme"
                + (" (quotes or blanks around it?)" if url.strip(" \t\r\n'\"") != url else "")
                + "; use one of "
                + ", ".join(f"{name}://" for name in SCHEMES)
            ]
        )
    try:
        target = _read(url, scheme)
    except ValueError:
        # The cause would show the password.
        raise invalid_url_error(url) from None
    if target is None:
        raise invalid_url_error(url)
    given = parse_qs(urlsplit(url).query, keep_blank_values=True)
    options = {name: values[-1] for name, values in given.items()}
    faults = tls_faults(scheme, options) + _password_faults(url, options)
    if faults:
        raise ConfigError([f"url {redacted(url)!r}: {fault}" for fault in faults])
    return target


def _password_faults(url: str, options: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the password files of a URL; opens them."""
    faults = []
    for name in ("password_file", "sentinel_password_file"):
        if name not in options:
            continue
        is_of_login = name == "password_file" and urlsplit(url).password is not None
        if is_of_login or name.removesuffix("_file") in options:
            faults.append("it has a password, and so has the password file; use one of them")
        try:
            first_line(options[name])
        except ConfigError as error:
            faults += error.faults
    return faults


def _read(url: str, scheme: str) -> RedisURL | None:
    parts = urlsplit(url)
    # urlsplit drops line breaks, and takes what follows a # for a fragment, which nothing reads.
    if parts.fragment or re.search(r"[\x00-\x1f\x7f]", url) or not _are_hosts(parts.netloc):
        return None
    options = set(parse_qs(parts.query, keep_blank_values=True))
    deployment = scheme.partition("+")[2]
    if not deployment:
        # Accessing the port validates it.
        is_readable = scheme == "unix" or (
            bool(parts.hostname) and parts.port != 0 and _is_database(parts.path.strip("/"))
        )
        is_readable = is_readable and _is_database(_option(parts.query, "db"))
        return RedisURL("single", url) if is_readable and options <= URL_OPTIONS else None
    hosts = parts.netloc.rpartition("@")[2].split(",")
    path = unquote(parts.path).strip("/")
    if deployment == "cluster":
        seeds = tuple(_address(host, REDIS_PORT) for host in hosts)
        # A Cluster has database 0 only.
        is_readable = path in ("", "0") and options <= URL_OPTIONS - {"db"}
        return RedisURL("cluster", url, seeds) if is_readable else None
    service, _, db = path.partition("/")
    seeds = tuple(_address(host, SENTINEL_PORT) for host in hosts)
    is_readable = bool(service) and _is_database(db)
    is_readable = is_readable and options <= URL_OPTIONS | SENTINEL_OPTIONS
    return RedisURL("sentinel", url, seeds, service) if is_readable else None


def _are_hosts(netloc: str) -> bool:
    """Whether what follows the login is made of hosts, or empty."""
    hosts = netloc.rpartition("@")[2]
    return not hosts or all(re.fullmatch(_NAME_OR_ADDRESS, one) for one in hosts.split(","))


def _is_database(text: str) -> bool:
    """Whether a text is the number of a database; empty means 0."""
    return not text or (text.isascii() and text.isdecimal())


def _option(query: str, name: str) -> str:
    return parse_qs(query).get(name, [""])[-1]


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or parts.query or parts.port == 0:
        raise ValueError(text)
    return Address(parts.hostname, port if parts.port is None else parts.port)


def cluster_url(url: str) -> str | None:
    """Return the URL of the Cluster that the server of a `redis://` URL belongs to.

    None if there is no such form: a unix socket, or a database other than 0.
    """
    parts = urlsplit(url)
    db = parse_qs(parts.query).get("db", [parts.path.strip("/") or "0"])[0]
    if parts.scheme not in ("redis", "rediss") or db != "0":
        return None
    options = _options(parts.query, URL_OPTIONS - {"db"})
    return f"{parts.scheme}+cluster://{parts.netloc}{options}"


def invalid_url_error(url: str) -> ConfigError:
    """Return the error for a URL that cannot be parsed, without its password."""
    scheme = url.partition("://")[0]
    form = "scheme://[user:password@]host[:port][/db]"
    options = URL_OPTIONS
    if scheme.endswith("+cluster"):
        form = "scheme://[user:password@]host[:port][,host[:port]...]"
        options = URL_OPTIONS - {"db"}
    elif scheme.endswith("+sentinel"):
        form = "scheme://[user:password@]host[:port][,host[:port]...]/service[/db]"
        options = URL_OPTIONS | SENTINEL_OPTIONS
    return ConfigError(
        [
            f"url {redacted(url)!r} cannot be read; the form is {form}, with / @ : ? # in a "
            "password percent-encoded, and the only options are " + ", ".join(sorted(options))
        ]
    )


_HOST: Final = r"(?:[\w.-]+|\[[\w:.%]+\])(?::\d+)?"
# All that is shown: hosts, ports and a path, behind a scheme and a user; passwords have any form.
_WELL_FORMED: Final = re.compile(
    rf"""(?P<scheme>[a-z+]+://)
         (?:(?P<user>[\w.%~+-]*)(?P<password>:.*)?@)?
         (?P<place>{_HOST}(?:,{_HOST})*(?:/[\w./%+~-]*)?|(?<=unix://)/.*|(?<=@)/.*|(?<=embedded://)[^@]*)
      """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_WITHOUT_SCHEME: Final = re.compile(r"[\w.-]+:\d+(?:/\d*)?")


def redacted(url: str) -> str:
    """Return a URL without its password and options, fit for logs and errors.

    Of a malformed one nothing is shown but its scheme: which part is the password is not known.
    """
    place, _, options = url.partition("?")
    if _WITHOUT_SCHEME.fullmatch(url):
        return url
    found = _WELL_FORMED.fullmatch(place)
    # An @ behind a ? belongs to a password that is not percent-encoded.
    if found is None or "@" in options or "#" in url:
        scheme = place.partition("://")[0].lower()
        return f"{scheme}://***" if scheme in SCHEMES else "***"
    user = found["user"]
    login = "" if user is None else f"{user}:***@" if found["password"] else f"{user}@"
    return found["scheme"] + login + found["place"]


_LOGIN: Final = re.compile(r"[a-z+]+://(?:(?P<login>[^/]*)@)?.*", re.IGNORECASE)


def has_password(url: str) -> bool:
    """Whether a URL holds a password: before the host, as an option, or for Sentinels."""
    return _has_user_password(url) or "sentinel_password" in _given_options(url)


def has_login(url: str) -> bool:
    """Whether a URL says how to log in to the data servers: by a password, or by its file."""
    return _has_user_password(url) or "password_file" in _given_options(url)


def _has_user_password(url: str) -> bool:
    login = ((match := _LOGIN.fullmatch(url)) is not None and match["login"]) or ""
    return bool(login.partition(":")[2]) or "password" in _given_options(url)


def _given_options(url: str) -> set[str]:
    """Return the names of the options that have a value."""
    return set(parse_qs(url.partition("?")[2]))
