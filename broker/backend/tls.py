"""Check the TLS options of a URL, and suggest a fix when a TLS connection fails."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

# The first entry with a word that is in the error applies; alerts are sent by the server.
_FIXES: Final = (
    (
        ("CERTIFICATE_REQUIRED",),
        "it requires a client certificate; add ssl_certfile and ssl_keyfile to the URL",
    ),
    (
        ("ALERT_CERTIFICATE_EXPIRED", "ALERT_CERTIFICATE_REVOKED"),
        "our client certificate is no longer valid; renew ssl_certfile and ssl_keyfile",
    ),
    (
        ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_UNKNOWN"),
        "it does not trust our client certificate; ssl_certfile must be signed by its CA",
    ),
    (
        ("Hostname mismatch", "IP address mismatch"),
        "its certificate is for another host; use a host that it names, or issue one for this host",
    ),
    (
        ("certificate has expired", "certificate is not yet valid"),
        "its certificate is not valid now; renew it, or correct the clock of this machine",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "we do not trust its certificate; set ssl_ca_certs to the file of the CA that signed it",
    ),
    (
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"),
        "it does not use TLS on this port; use redis://, or the server's tls-port",
    ),
    (
        ("[X509", "[PEM", "PEM lib", "NO_START_LINE", "KEY_VALUES_MISMATCH"),
        "the files of the ssl_ options must be PEM, and the key must match the certificate",
    ),
    (("[SSL",), "compare the ssl_ options of the URL with the server's tls- settings"),
)

# How asyncio and the Redis client report a connection that the server closed.
_ABRUPT: Final = (
    "reset by peer",
    "closed by server",
    "Broken pipe",
    "Connection lost",
    "EOF occurred",
    "Timeout connecting",
)


def tls_faults(scheme: str, options: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the TLS options of a URL; opens the files, does not connect."""
    given = sorted(name for name in options if name.startswith("ssl_"))
    if given and not scheme.startswith("rediss"):
        return [f"{', '.join(given)}: for TLS the URL must begin with rediss://"]
    faults = []
    for name in FILES:
        try:
            with Path(options.get(name, os.devnull)).open("rb"):
                pass
        except OSError as error:
            faults.append(f"cannot read {name}={options[name]}: {error.strerror}")
    if ("ssl_certfile" in options) != ("ssl_keyfile" in options):
        faults.append(
            "ssl_certfile and ssl_keyfile must be given together; if one file holds both, name it "
            "twice"
        )
    return faults


def tls_fix(error_text: str) -> str | None:
    """Return the fix, a sentence without a full stop; None if it is not a TLS error."""
    for words, fix in _FIXES:
        if any(word in error_text for word in words):
            return fix
    return None


def tls_hint(server: str, error_text: str) -> str:
    """Return a hint if a connection was closed as it is when only one side uses TLS.

    Args:
        server: its URL, or any other name.
        error_text: the error.

    Returns:
        A clause to end a sentence with; empty for other errors.
    """
    if not any(word in error_text for word in _ABRUPT):
        return ""
    if server.startswith("rediss"):
        return "; does it use TLS on this port, and require a client certificate (ssl_certfile)?"
    if server.startswith("redis"):
        return "; if this is its TLS port, use rediss://"
    return ""
