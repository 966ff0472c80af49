"""One process that must run: started, watched, and restarted when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.embedded.log import rotate, tail
from broker.errors import EmbeddedError
from broker.runtime.backoff import Backoff
from broker.runtime.processes import tie_to_parent

READY_CHECK_S = 0.005
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0

logger = logging.getLogger(__name__)


class Child(ABC):
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
        self.name = name
        self.command = command
        self.log = log
        self.start_timeout_s = start_timeout_s
        self.orphan_signal = orphan_signal
        self.environment = {**os.environ, **(environment or {})}
        self.inherits = inherits
        self.process: Process | None = None
        self.launched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rotate(log)
        self.running = asyncio.create_task(self.run())

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
        await asyncio.shield(self.launched)

    async def stop(self, grace_s: float) -> None:
        """Send SIGTERM, after the grace period (0: at once) SIGKILL; return once it has ended."""
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running
        if self.process is None:
            return
        if grace_s:
            self.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), grace_s)
        self.send(signal.SIGKILL)
        await self.process.wait()
        self.clear()

    async def run(self) -> None:
        """Start and restart it, with pauses that grow while it keeps failing."""
        loop = asyncio.get_running_loop()
        restart = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
        while True:
            began = loop.time()
            try:
                self.clear()
                self.process = await self.spawn()
                await self.wait_ready(self.process)
            except (EmbeddedError, OSError) as failure:
                logger.warning("child_not_started name=%r reason=%s", self.name, failure)
                self.launched.set_exception(EmbeddedError(str(failure)))
                # Nothing awaits a restart, so the error must be retrieved here.
                self.launched.exception()
            else:
                self.launched.set_result(None)
                code = await self.process.wait()
                logger.warning("child_died name=%r code=%s", self.name, code)
            self.launched = loop.create_future()
            if loop.time() - began > MAX_PAUSE_S:
                restart.reset()
            await asyncio.sleep(restart.next())

    async def spawn(self) -> Process:
        """Start the process; it ends with this one."""
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self.command,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                pass_fds=self.inherits,
                preexec_fn=tie_to_parent(self.orphan_signal),
            )

    async def wait_ready(self, process: Process) -> None:
        """Wait until it serves; kill it if it does not in time."""
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
        raise EmbeddedError(f"{self.name} {state}: {tail(self.log)}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended already."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
