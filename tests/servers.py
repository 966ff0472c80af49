"""Real servers for tests: started here, dead when the test process is."""

from scripts.servers.process import (
    DIE_WITH_PARENT,
    KINDS,
    REDIS,
    VALKEY,
    Server,
    find_binary,
    free_port,
)

__all__ = ["DIE_WITH_PARENT", "KINDS", "REDIS", "VALKEY", "Server", "find_binary", "free_port"]
