"""The processes that measure one point of a curve: server, our worker, and any number of roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scripts.benchmarks.cluster import cluster
from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.counters import Counters
from scripts.benchmarks.cpu import cpu_ns
from scripts.benchmarks.link import RoleConfig
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.processes import Process, ProcessesOfRun
from scripts.benchmarks.role_process import launch_role, start_role
from scripts.benchmarks.services import start_redis, start_worker
from scripts.benchmarks.workload import digest

TIMEOUT_S = 120.0
PACKAGE = "scripts.benchmarks."


class ProcessGroup(ProcessesOfRun):
    """The processes of one run: servers, a worker, and any number of roles.

    Args:
        server: "redis" or "valkey".
        worker: settings of our worker as environment variables without their prefix, such as
            `{"LOCAL_DELTA_MAX_AGE": "10ms"}`; None for no worker.
        command: "serve", or "flush" for a worker that writes no full state.
        primaries: of a Redis Cluster on loopback; 0 for one server without a cluster.

    Attributes:
        redis: URL of the server, or of the cluster.
        all_counters: one for each primary.
        nodes: process of each primary; of the server, if it is the only one.
        services: name -> process of the server, if there is no cluster; and of our worker.
    """

    redis: str
    all_counters: list[Counters]
    nodes: list[Process]

    def __init__(
        self,
        server: str,
        worker: Mapping[str, str] | None = None,
        *,
        command: str = "serve",
        primaries: int = 0,
    ) -> None:
        super().__init__()
        self._primaries = primaries
        self._server = server
        self._worker = worker
        self._command = command
        self.services: dict[str, Process] = {}

    def start_all(self) -> None:
        """Start server and worker."""
        self.all_counters = [
            self.stack.enter_context(Counters(url)) for url in self._start_servers()
        ]
        if self._worker is not None:
            settings = {f"STATEBROKER_{name}": value for name, value in self._worker.items()}
            process = start_worker(
                self.redis, NAMESPACE, self.folder, settings, command=self._command
            )
            self.services["worker"] = self.stack.enter_context(process)

    @property
    def counters(self) -> Counters:
        """Counters of the server, or of the first primary."""
        return self.all_counters[0]

    def _start_servers(self) -> list[str]:
        """Start one server or a cluster; return the URL of each server."""
        if not self._primaries:
            process, self.redis = start_redis(self._server, self.folder)
            self.services["server"] = self.stack.enter_context(process)
            self.nodes = [process]
            return [self.redis]
        self.nodes, ports = self.stack.enter_context(
            cluster(self._server, self.folder, self._primaries)
        )
        seeds = [f"127.0.0.1:{port}" for port in ports]
        self.redis = f"redis+cluster://{','.join(seeds)}"
        return [f"redis://{seed}" for seed in seeds]

    def start(self, name: str, role: str, /, *, redis: str = "", **details: object) -> Process:
        """Start a role; it is not ready yet.

        Args:
            name: of the process, unique.
            role: module below scripts.benchmarks and its function, such as "roles.flow.write".
            redis: another way to the server.
            details: for the role; `updates` and `keys` are those of the workload.
        """
        module, _, function = role.rpartition(".")
        updates, keys = (int(str(details.pop(one, 0))) for one in ("updates", "keys"))
        config = RoleConfig(str(self.folder), redis or self.redis, "", updates, keys, details)
        process = launch_role(name, PACKAGE + module, function, self.folder)
        start_role(process, config)
        return self.stack.enter_context(process)

    def ready(self, *roles: Process) -> list[dict[str, Any]]:
        """Wait until all of these are ready; return their reports."""
        return [role.receive(TIMEOUT_S) for role in roles]

    def check(self, readers: Iterable[Process], right: Mapping[str, Any]) -> None:
        """Compare what each replica of these readers holds with the right state.

        Raises:
            BenchmarkError: one does not hold it.
        """
        expected = {"keys": len(right), "digest": digest(right)}
        for reader in readers:
            reader.send("show")
            for found in reader.receive(TIMEOUT_S)["states"]:
                if found != expected:
                    raise BenchmarkError(
                        f"{reader.name} ends with a wrong state: {found['keys']} keys instead of "
                        f"{expected['keys']}, or other values"
                    )


def cpu_of(processes: Sequence[Process]) -> Callable[[], int]:
    """Return a function that returns the CPU time that these took from now on, in nanoseconds."""
    before = sum(cpu_ns(process.pid) for process in processes)
    return lambda: sum(cpu_ns(process.pid) for process in processes) - before
