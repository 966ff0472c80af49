"""One run of one contender: its services, its writer and reader, and their CPU time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.cpu import cpu_ns
from scripts.benchmarks.link import RoleConfig
from scripts.benchmarks.model import BenchmarkError, Contender
from scripts.benchmarks.processes import Process, ProcessesOfRun
from scripts.benchmarks.role_process import launch_role, start_role
from scripts.benchmarks.services import start_nats, start_redis, start_worker
from scripts.benchmarks.workload import difference, fault_of

RUN_TIMEOUT_S = 90.0


class ContenderRun(ProcessesOfRun):
    """All processes of one run of a contender.

    Args:
        contender: what is measured.
        updates: how many are written.
        server: "redis" or "valkey".
        details: for both roles.

    Attributes:
        writer: the role; ready.
        reader: the role; ready, and connected.
        redis: URL of the server; empty if there is none.
    """

    writer: Process
    reader: Process
    redis: str

    def __init__(
        self,
        contender: Contender,
        updates: int,
        server: str,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.contender = contender
        self.updates = updates
        self._server = server
        self._details = {**contender.details, **(details or {})}
        self._services: dict[str, Process] = {}

    def start_all(self) -> None:
        """Start roles and services; the roles begin once the services run."""
        self.reader = self._launch("reader", "read")
        self.writer = self._launch("writer", "write")
        config = self._start_services()
        # One after the other: a writer may need what its reader creates.
        for role in (self.reader, self.writer):
            start_role(role, config)
            role.receive(RUN_TIMEOUT_S)

    def cpu_ns(self) -> dict[str, int]:
        """Return role -> CPU time of its process so far, services included."""
        processes = {"writer": self.writer, "reader": self.reader, **self._services}
        return {role: cpu_ns(process.pid) for role, process in processes.items()}

    def wait_until_written(self) -> dict[str, Any]:
        """Return the writer's report that it is done, and hand its note to the reader."""
        report = self.writer.receive(RUN_TIMEOUT_S)
        self.reader.send("note", note=report["note"])
        return report

    def wait_until_read(self) -> dict[str, Any]:
        """Return the reader's report that it is done."""
        return self.reader.receive(RUN_TIMEOUT_S)

    def check_state(self, right: Mapping[str, Any] | None = None) -> None:
        """Compare what the reader holds with what was written.

        Args:
            right: the right state; None for that of the common workload.

        Raises:
            BenchmarkError: they differ; the message says by how many keys.
        """
        file = self.folder / "state"
        self.reader.send("show", file=str(file))
        self.reader.receive(RUN_TIMEOUT_S)
        found = msgpack.unpackb(file.read_bytes())
        fault = (
            difference(found, self.updates, self.contender.keys)
            if right is None
            else fault_of(found, right)
        )
        if fault:
            raise BenchmarkError(fault)

    def _launch(self, name: str, function: str) -> Process:
        return self.stack.enter_context(
            launch_role(name, self.contender.module, function, self.folder)
        )

    def _start_services(self) -> RoleConfig:
        redis = self.redis = nats = ""
        for service in self.contender.services:
            match service:
                case "redis":
                    process, redis = start_redis(self._server, self.folder)
                    self.redis = redis
                case "worker":
                    process = start_worker(redis, NAMESPACE, self.folder, self.contender.settings)
                case "nats":
                    process, nats = start_nats(self.folder)
                case _:
                    raise BenchmarkError(f"unknown service {service!r}")
            self.stack.enter_context(process)
            self._services[process.name] = process
        return RoleConfig(
            str(self.folder), redis, nats, self.updates, self.contender.keys, self._details
        )
