"""Certificates for a test, and the settings of a server that requires them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import trustme

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files of one certificate authority, and what it signed.

    Attributes:
        authority: its own certificate.
        server: chain and key in one file, for localhost, 127.0.0.1 and any names given.
        client: likewise, for a client.
        expired: likewise, of a client whose certificate ended yesterday.
    """

    authority: Path
    server: Path
    client: Path
    expired: Path

    @classmethod
    def made(
        cls, directory: Path, *names: str, server_ends: datetime | None = None
    ) -> Certificates:
        """Make all of them in an empty directory.

        Args:
            directory: made if it does not exist.
            names: what the server's certificate is for beside localhost and 127.0.0.1.
            server_ends: when the server's certificate ends; None: in a good while.
        """
        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        files = cls(*(directory / f"{name}.pem" for name in cls.__slots__))
        authority.cert_pem.write_to_path(files.authority)
        for path, identities, ends in (
            (files.server, ("localhost", "127.0.0.1", *names), server_ends),
            (files.client, ("client.example",), None),
            (files.expired, ("client.example",), YESTERDAY),
        ):
            leaf = authority.issue_cert(*identities, not_after=ends)
            leaf.private_key_and_cert_chain_pem.write_to_path(path)
        return files

    def server_args(self, port: int, *, wants_client: bool = True) -> list[str]:
        """Return the server's arguments for TLS on this port, and plaintext on none."""
        return [
            *("--tls-port", str(port), "--tls-ca-cert-file", str(self.authority)),
            *("--tls-cert-file", str(self.server), "--tls-key-file", str(self.server)),
            *("--tls-auth-clients", "yes" if wants_client else "no"),
        ]

    def options(self, client: Path | None = None) -> str:
        """Return the TLS options of a URL: the authority to trust and the client certificate."""
        reported = {"ssl_ca_certs": str(self.authority)}
        if client is not None:
            reported |= {"ssl_certfile": str(client), "ssl_keyfile": str(client)}
        return "?" + urlencode(reported, safe="/")
