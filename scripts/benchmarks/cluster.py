"""A Redis Cluster of local primaries, without replicas. They persist nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis

from scripts.benchmarks.processes import Process
from scripts.benchmarks.services import redis_binary, wait_until_ready

SLOTS = 16_384


@contextmanager
def cluster(kind: str, folder: Path, primaries: int) -> Iterator[tuple[list[Process], list[int]]]:
    """Start primaries, each with an even share of the slots; end them afterwards.

    Args:
        kind: "redis" or "valkey".
        folder: each primary gets a folder in it.
        primaries: at least 1.

    Yields:
        The processes and their ports on loopback, once each of them sees all slots served.

    Raises:
        BenchmarkError: one did not start, or they did not form a cluster.
    """
    with ExitStack() as stack:
        # Kept open until all are chosen, so that no port is chosen twice.
        probes = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(2 * primaries)
        ]
        chosen = [int(probe.getsockname()[1]) for probe in probes]
    ports, buses = chosen[:primaries], chosen[primaries:]
    with ExitStack() as stack:
        nodes = []
        for number, (port, bus) in enumerate(zip(ports, buses, strict=True), 1):
            home = folder / f"node-{number}"
            home.mkdir()
            command = [str(redis_binary(kind)), *_options(home, port, bus)]
            nodes.append(stack.enter_context(Process(f"server-{number}", command, folder)))
        for node, port in zip(nodes, ports, strict=True):
            wait_until_ready(node, partial(_answers, port))
        for number, port in enumerate(ports):
            first, end = (SLOTS * bound // primaries for bound in (number, number + 1))
            _ask(port, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            _ask(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port, bus in zip(ports[1:], buses[1:], strict=True):
            _ask(ports[0], "CLUSTER", "MEET", "127.0.0.1", port, bus)
        for node, port in zip(nodes, ports, strict=True):
            wait_until_ready(node, partial(_is_whole, port, primaries))
        yield nodes, ports


def _options(home: Path, port: int, bus: int) -> list[str]:
    options = {
        "--bind": "127.0.0.1",
        "--port": port,
        "--cluster-enabled": "yes",
        "--cluster-port": bus,
        "--save": "",
        "--appendonly": "no",
        "--dir": home,
        # Otherwise the server would disconnect a subscriber that falls behind.
        "--client-output-buffer-limit": "pubsub 0 0 0",
    }
    return [str(word) for option in options.items() for word in option]


def _answers(port: int) -> bool:
    return bool(_ask(port, "PING"))


def _is_whole(port: int, primaries: int) -> bool:
    found = str(_ask(port, "CLUSTER", "INFO")).split()
    wanted = {f"cluster_slots_ok:{SLOTS}", f"cluster_known_nodes:{primaries}", "cluster_state:ok"}
    return wanted <= set(found)


def _ask(port: int, *command: str | int) -> Any:
    try:
        with redis.Redis(port=port, protocol=2, decode_responses=True) as client:
            return client.execute_command(*command)
    except redis.ConnectionError as error:
        raise OSError(str(error)) from error
