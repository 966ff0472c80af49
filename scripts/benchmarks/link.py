"""A role's side of the conversation with the measuring process: JSON lines on stdin and stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from scripts.benchmarks.workload import digest, workload


@dataclass(frozen=True)
class RoleConfig:
    """What a role needs to know.

    Attributes:
        folder: of this run, short enough for sockets in it.
        redis: URL of the Redis, empty if there is none.
        nats: URL of the NATS server, empty if there is none.
        updates: how many are written.
        keys: how many different ones.
        details: further settings of this role; each role's docstring lists its own.
    """

    folder: str
    redis: str
    nats: str
    updates: int
    keys: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def workload(self) -> tuple[list[str], list[float]]:
        """Return the keys and values to write, in order."""
        return workload(self.updates, self.keys)


class Link:
    """Exchanges messages with the measuring process.

    All times are of the monotonic clock, which the processes of a machine share, in nanoseconds.
    """

    def ready(self) -> None:
        """Report that everything is connected; a reader receives all updates from here on."""
        self.send(ready=True)

    def wait_for_go(self) -> int:
        """Wait until all roles are ready; return the time."""
        self.expect("go")
        return time.monotonic_ns()

    def wrote(self, began: int, note: str = "", **measures: float) -> None:
        """Report that everything is written, and acknowledged if it is; wait for the end.

        Args:
            began: the time just before the first update was written.
            note: for the reader, if it waits for one.
            measures: what it measured itself.
        """
        self.send(began=began, at=time.monotonic_ns(), note=note, measures=measures)
        self.expect("end")

    def note(self) -> str:
        """Wait for the writer's note and return it."""
        return str(self.expect("note")["note"])

    def read(
        self, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], **measures: float
    ) -> None:
        """Report that the state is complete, hand it over, and wait for the end.

        Args: those of `hand_over`.
        """
        self.hand_over(state, **measures)
        self.expect("end")

    def hand_over(
        self, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], **measures: float
    ) -> None:
        """Report that the state is complete, then hand it over.

        Args:
            state: what this reader holds, or a function that returns it once the clock has stopped.
            measures: what it measured itself.
        """
        self.send(at=time.monotonic_ns(), measures=measures)
        shown = self.expect("show")["file"]
        held = state() if callable(state) else state
        Path(shown).write_bytes(msgpack.packb(dict(held)))
        self.send(shown=True)

    def show(self, *states: Mapping[str, Any]) -> None:
        """Wait for the order to report these states, report their digests, and wait for the end."""
        self.expect("show")
        self.send(states=[{"keys": len(state), "digest": digest(state)} for state in states])
        self.expect("end")

    def send(self, **report: object) -> None:
        """Report to the measuring process."""
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()

    def expect(self, order: str) -> dict[str, Any]:
        """Wait for an order and return its details; exit if the order is to end."""
        while True:
            message = self.receive()
            if message["order"] == order:
                return message
            if message["order"] == "end":
                sys.exit(f"waited for {order!r}, and got the order to end")

    def receive(self) -> dict[str, Any]:
        """Wait for the next order of any kind; return it with its details."""
        line = sys.stdin.readline()
        if not line:
            sys.exit("the measuring process is gone")
        message: dict[str, Any] = json.loads(line)
        return message
