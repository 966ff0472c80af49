"""A process of the keeper, which has to become ready in time."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.embedded.log import rotate, tail
from broker.errors import EmbeddedError
from broker.runtime import child
from broker.runtime.child import StartError

READY_CHECK_S = 0.005


class Child(child.Child, ABC):
    """A process of the keeper, which ends with the keeper and is restarted when it ends alone.

    Args:
        name: what error messages call it.
        command: program and arguments.
        log: file that gets its output.
        start_timeout_s: how long a start may take before the process is killed.
        orphan_signal: what the kernel sends it when the keeper is killed.
        environment: variables to set on top of the keeper's own.
        inherits: descriptors that it gets.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        start_timeout_s: float,
        orphan_signal: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str] | None = None,
        inherits: Sequence[int] = (),
    ) -> None:
        self.log = log
        self.start_timeout_s = start_timeout_s
        rotate(log)
        super().__init__(
            name,
            command,
            environment={**os.environ, **(environment or {})},
            orphan_signal=orphan_signal,
            output=log,
            inherits=inherits,
        )

    @abstractmethod
    async def is_ready(self) -> bool:
        """Whether it serves already; called only while it starts."""

    @abstractmethod
    def clear(self) -> None:
        """Remove what an earlier process left and `is_ready` could mistake for this one's."""

    async def ready(self) -> None:
        """Wait until it serves.

        Raises:
            EmbeddedError: This attempt to start it failed (another one follows after a pause).
        """
        try:
            await super().ready()
        except StartError as failure:
            raise EmbeddedError(str(failure)) from None

    async def wait_ready(self, process: Process) -> None:
        """Wait until it serves; kill it if it does not in time.

        Raises:
            StartError: it ended or was killed; the message has the end of its log.
        """
        try:
            async with asyncio.timeout(self.start_timeout_s):
                while process.returncode is None:
                    if await self.is_ready():
                        return
                    await asyncio.sleep(READY_CHECK_S)
            state = f"ended with code {process.returncode} while starting"
        except TimeoutError:
            self.send(signal.SIGKILL)
            await process.wait()
            state = f"was not ready after {self.start_timeout_s:g} s"
        raise StartError(f"{self.name} {state}: {tail(self.log)}")
