"""Redis Clusters and Sentinels for tests."""

from scripts.servers.clustered import SLOTS, ClusterOfServers, Reachable, Watched, ask, client, raw

__all__ = ["SLOTS", "ClusterOfServers", "Reachable", "Watched", "ask", "client", "raw"]
