"""A role's side of the handshake: JSON lines on stdin and stdout."""

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
class Place:
    """Where a role works.

    Attributes:
        folder: of this run, short enough for sockets in it.
        redis: URL of the Redis, empty if there is none.
        nats: URL of the NATS server, empty if there is none.
        updates: how many are written.
        keys: how many different ones.
        details: what else this role has to know.
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
    """Speaks with the process that measures. All times are of the clock that processes share."""

    def ready(self) -> None:
        """Tell that everything is connected; a reader hears all updates from here on."""
        self.tell(ready=True)

    def wait_for_go(self) -> int:
        """Wait until all are ready; return the time."""
        self.expect("go")
        return time.monotonic_ns()

    def wrote(self, began: int, note: str = "") -> None:
        """Tell that all is written, and acknowledged where that is so; wait for the end.

        Args:
            began: when the first update was about to be written.
            note: for the reader, if it waits for one.
        """
        self.tell(began=began, at=time.monotonic_ns(), note=note)
        self.expect("end")

    def note(self) -> str:
        """Wait for the writer's note."""
        return str(self.expect("note")["note"])

    def read(
        self, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], **measures: float
    ) -> None:
        """Tell that the state is complete, then show it.

        Args:
            state: what this reader holds, or a function that looks it up when the clock stopped.
            measures: what it measured itself.
        """
        self.tell(at=time.monotonic_ns(), measures=measures)
        shown = self.expect("show")["file"]
        held = state() if callable(state) else state
        Path(shown).write_bytes(msgpack.packb(dict(held)))
        self.tell(shown=True)
        self.expect("end")

    def show(self, *states: Mapping[str, Any]) -> None:
        """Wait to be asked for these states, tell what they are, and wait for the end."""
        self.expect("show")
        self.tell(states=[{"keys": len(state), "digest": digest(state)} for state in states])
        self.expect("end")

    def tell(self, **report: object) -> None:
        """Report to the process that measures."""
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()

    def expect(self, order: str) -> dict[str, Any]:
        """Wait for an order and return its details; end if told to end instead."""
        while True:
            told = self.order()
            if told["order"] == order:
                return told
            if told["order"] == "end":
                sys.exit(f"waited for {order!r}, and was told to end")

    def order(self) -> dict[str, Any]:
        """Wait for the next order, whatever it is, and return it with its details."""
        line = sys.stdin.readline()
        if not line:
            sys.exit("nobody gives orders any more")
        told: dict[str, Any] = json.loads(line)
        return told
