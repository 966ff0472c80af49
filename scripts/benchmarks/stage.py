"""One run of one contender: its services, its two roles, and their CPU time."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import msgpack

from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.cpu import cpu_ns
from scripts.benchmarks.link import Place
from scripts.benchmarks.model import BenchmarkError, Contender
from scripts.benchmarks.processes import Process
from scripts.benchmarks.services import start_nats, start_redis, start_worker
from scripts.benchmarks.workload import difference

RUN_TIMEOUT_S = 90.0


class Stage:
    """Everything of one run; leaving the context ends every process of it.

    Args:
        contender: who plays.
        updates: how many are written.
        server: "redis" or "valkey".
        details: for both roles.

    Attributes:
        writer: the role; ready.
        reader: the role; ready, and hearing.
    """

    writer: Process
    reader: Process

    def __init__(
        self,
        contender: Contender,
        updates: int,
        server: str,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.contender = contender
        self.updates = updates
        self._server = server
        self._details = details or {}
        self._stack = ExitStack()
        self._services: dict[str, Process] = {}

    def __enter__(self) -> Self:
        """Start everything.

        Raises:
            BenchmarkError: something did not start.
        """
        try:
            self.folder = Path(
                self._stack.enter_context(TemporaryDirectory(prefix="statebroker-bench-"))
            )
            place = self._start_services()
            self.reader = self._start_role("reader", "read", place)
            self.writer = self._start_role("writer", "write", place)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything."""
        self._stack.close()

    def cpu_ns(self) -> dict[str, int]:
        """Return role -> CPU time of its process so far, services included."""
        everybody = {"writer": self.writer, "reader": self.reader, **self._services}
        return {role: cpu_ns(process.pid) for role, process in everybody.items()}

    def wrote(self) -> dict[str, Any]:
        """Return the writer's report that it is done, and hand its note to the reader."""
        report = self.writer.report(RUN_TIMEOUT_S)
        self.reader.tell("note", note=report["note"])
        return report

    def read(self) -> dict[str, Any]:
        """Return the reader's report that it is done."""
        return self.reader.report(RUN_TIMEOUT_S)

    def check_state(self) -> None:
        """Compare what the reader holds with what was written.

        Raises:
            BenchmarkError: it is not the same; says how much is not.
        """
        file = self.folder / "state"
        self.reader.tell("show", file=str(file))
        self.reader.report(RUN_TIMEOUT_S)
        fault = difference(msgpack.unpackb(file.read_bytes()), self.updates, self.contender.keys)
        if fault:
            raise BenchmarkError(fault)

    def _start_services(self) -> Place:
        redis = nats = ""
        for service in self.contender.services:
            match service:
                case "redis":
                    process, redis = start_redis(self._server, self.folder)
                case "worker":
                    process = start_worker(redis, NAMESPACE, self.folder, self.contender.settings)
                case "nats":
                    process, nats = start_nats(self.folder)
                case _:
                    raise BenchmarkError(f"unknown service {service!r}")
            self._stack.enter_context(process)
            self._services[process.name] = process
        return Place(
            str(self.folder), redis, nats, self.updates, self.contender.keys, self._details
        )

    def _start_role(self, name: str, role: str, place: Place) -> Process:
        fields = json.dumps(dataclasses.asdict(place))
        module = self.contender.module
        command = [sys.executable, "-P", "-m", "scripts.benchmarks.role", module, role, fields]
        process = self._stack.enter_context(Process(name, command, self.folder, is_role=True))
        process.report(RUN_TIMEOUT_S)
        return process
