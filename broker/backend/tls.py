"""What is wrong with the TLS options of a URL, and what to mend when a TLS connection fails."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

# The first line of which any word is in the error tells; alerts are what the server says of us.
_FIXES: Final = (
    (
        ("CERTIFICATE_REQUIRED",),
        "it wants a client certificate; add ssl_certfile and ssl_keyfile to the URL",
    ),
    (
        ("ALERT_CERTIFICATE_EXPIRED", "ALERT_CERTIFICATE_REVOKED"),
        "our client certificate is not valid any more; renew ssl_certfile and ssl_keyfile",
    ),
    (
        ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_UNKNOWN"),
        "it does not trust our client certificate; its tls-ca-cert-file has to sign ssl_certfile",
    ),
    (
        ("Hostname mismatch", "IP address mismatch"),
        "its certificate is for another name; use a host that it names, or make one for this host",
    ),
    (
        ("certificate has expired", "certificate is not yet valid"),
        "its certificate is not valid now; renew it, or set the clock of this machine",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "we do not trust its certificate; give the file of the CA that signed it as ssl_ca_certs",
    ),
    (
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"),
        "it speaks no TLS on this port; use redis://, or the server's tls-port",
    ),
    (
        ("[X509", "[PEM", "PEM lib", "NO_START_LINE", "KEY_VALUES_MISMATCH"),
        "the files of the ssl_ options have to be PEM, and key and certificate a pair",
    ),
    (("[SSL",), "compare the ssl_ options of the URL with the server's tls- settings"),
)

# How asyncio and the Redis client call a connection that the other side hung up on.
_ABRUPT: Final = (
    "reset by peer",
    "closed by server",
    "Broken pipe",
    "Connection lost",
    "EOF occurred",
    "Timeout connecting",
)


def tls_faults(scheme: str, options: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the options of a URL, before anything connects; opens the files."""
    given = sorted(name for name in options if name.startswith("ssl_"))
    if given and not scheme.startswith("rediss"):
        return [f"{', '.join(given)}: for TLS the URL begins with rediss://"]
    faults = []
    for name in FILES:
        try:
            with Path(options.get(name, os.devnull)).open("rb"):
                pass
        except OSError as error:
            faults.append(f"cannot read {name}={options[name]}: {error.strerror}")
    if ("ssl_certfile" in options) != ("ssl_keyfile" in options):
        faults.append(
            "ssl_certfile and ssl_keyfile go together; where one file has both, name it twice"
        )
    return faults


def tls_fix(said: str) -> str | None:
    """Return what to mend, in a sentence without a dot; None if the error is not one of TLS."""
    for words, fix in _FIXES:
        if any(word in said for word in words):
            return fix
    return None


def tls_hint(server: str, said: str) -> str:
    """Return what else may be wrong if a connection ends as it does when one side has no TLS.

    Args:
        server: its URL, or any other name.
        said: the error.

    Returns:
        A clause to end a sentence with; empty if it is not such an error.
    """
    if not any(word in said for word in _ABRUPT):
        return ""
    if server.startswith("rediss"):
        return "; does it have TLS on this port, and want a client certificate (ssl_certfile)?"
    if server.startswith("redis"):
        return "; if this is its TLS port, use rediss://"
    return ""
