"""A role's side of the handshake: JSON lines on stdin and stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from scripts.benchmarks.workload import workload


@dataclass(frozen=True)
class Place:
    """Where a role works.

    Attributes:
        folder: of this run, short enough for sockets in it.
        redis: URL of the Redis, empty if there is none.
        nats: URL of the NATS server, empty if there is none.
        updates: how many are written.
        keys: how many different ones.
    """

    folder: str
    redis: str
    nats: str
    updates: int
    keys: int

    def workload(self) -> tuple[list[str], list[float]]:
        """Return the keys and values to write, in order."""
        return workload(self.updates, self.keys)


class Link:
    """Speaks with the process that measures. All times are of the clock that processes share."""

    def ready(self) -> None:
        """Tell that everything is connected; a reader hears all updates from here on."""
        self._tell(ready=True)

    def wait_for_go(self) -> int:
        """Wait until all are ready; return the time."""
        self._expect("go")
        return time.monotonic_ns()

    def wrote(self, began: int, note: str = "") -> None:
        """Tell that all is written, and acknowledged where that is so; wait for the end.

        Args:
            began: when the first update was about to be written.
            note: for the reader, if it waits for one.
        """
        self._tell(began=began, at=time.monotonic_ns(), note=note)
        self._expect("end")

    def note(self) -> str:
        """Wait for the writer's note."""
        return str(self._expect("note")["note"])

    def read(self, state: Mapping[str, Any], **measures: float) -> None:
        """Tell that the state is complete, then show it.

        Args:
            state: what this reader holds.
            measures: what it measured itself.
        """
        self._tell(at=time.monotonic_ns(), measures=measures)
        shown = self._expect("show")["file"]
        Path(shown).write_bytes(msgpack.packb(dict(state)))
        self._tell(shown=True)
        self._expect("end")

    def _tell(self, **report: object) -> None:
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()

    def _expect(self, order: str) -> dict[str, Any]:
        for line in sys.stdin:
            told: dict[str, Any] = json.loads(line)
            if told["order"] == order:
                return told
            if told["order"] == "end":
                break
        sys.exit(f"waited for {order!r}, and was told to end")
