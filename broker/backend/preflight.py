"""What a URL leads to: every server of it fit, and a Cluster recognised by any of its nodes."""

from __future__ import annotations

from typing import Any

from broker.backend.connections import Connections, check_server, translated
from broker.backend.routing import Routed
from broker.backend.topology import Client
from broker.backend.urls import cluster_url, redacted
from broker.errors import AccessError, ConnectError, UnsupportedServerError


async def check_servers(connections: Connections, client: Client) -> dict[str, Any]:
    """Refuse a deployment of which a server is unfit; return what one of them says of itself.

    A node of a Cluster that is away is left out: it is not checked before its replica is.

    Raises:
        ConnectError, UnsupportedServerError: as `check_server`.
    """
    if not isinstance(client, Routed):
        return await check_server(client, connections.name)
    async with translated("connecting", connections.name):
        owners = await connections.directory.owners()
    found: dict[str, Any] = {}
    away: ConnectError | None = None
    for address in owners:
        try:
            found = await check_server(client.server(address), f"{connections.name} at {address}")
        except AccessError:
            raise
        except ConnectError as error:
            away = error
    if away is not None and not found:
        raise away
    return found


def is_cluster(info: dict[str, Any]) -> bool:
    """Whether a server said that it is a node of a Redis Cluster."""
    return "cluster" in (info.get("redis_mode"), info.get("server_mode"))


def of_cluster(url: str) -> str:
    """Return the URL of the Cluster whose node a URL names.

    Raises:
        UnsupportedServerError: this node cannot be a way into it.
    """
    found = cluster_url(url)
    if found is None:
        raise UnsupportedServerError(
            f"{redacted(url)} is a node of a Redis Cluster, which needs TCP and has no databases; "
            "use redis+cluster://host:port"
        )
    return found
