"""Check every server of a deployment before use, and recognise a Cluster by one of its nodes."""

from __future__ import annotations

from typing import Any

from broker.backend.connections import Connections, check_server, translated
from broker.backend.routing import Routed
from broker.backend.topology import Client
from broker.backend.urls import cluster_url, redacted
from broker.errors import AccessError, ConnectError, UnsupportedServerError


async def check_servers(connections: Connections, client: Client) -> dict[str, Any]:
    """Refuse a deployment with an unsupported server; return the INFO of one server.

    An unreachable node of a Cluster is skipped, as long as another one answers.

    Raises:
        ConnectError, UnsupportedServerError: see `check_server`.
    """
    if not isinstance(client, Routed):
        return await check_server(client, connections.name)
    async with translated("connecting", connections.name):
        owners = await connections.directory.owners()
    found: dict[str, Any] = {}
    unreachable: ConnectError | None = None
    for address in owners:
        try:
            found = await check_server(client.server(address), f"{connections.name} at {address}")
        except AccessError:
            raise
        except ConnectError as error:
            unreachable = error
    if unreachable is not None and not found:
        raise unreachable
    return found


def is_cluster(info: dict[str, Any]) -> bool:
    """Whether the INFO of a server says that it is a node of a Redis Cluster."""
    return "cluster" in (info.get("redis_mode"), info.get("server_mode"))


def of_cluster(url: str) -> str:
    """Return the URL of the Cluster that a node belongs to.

    Raises:
        UnsupportedServerError: the URL of the node has no Cluster form.
    """
    found = cluster_url(url)
    if found is None:
        raise UnsupportedServerError(
            f"{redacted(url)} is a node of a Redis Cluster, which needs TCP and has no databases; "
            "use redis+cluster://host:port"
        )
    return found
