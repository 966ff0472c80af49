"""A process that has to run: started, and restarted whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from broker.runtime.backoff import Backoff
from broker.runtime.processes import tie_to_parent

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0

logger = logging.getLogger(__name__)


class StartError(Exception):
    """The process did not start; the message is the reason."""


class Child:
    """A process that ends with this one and is restarted, with growing pauses, whenever it ends.

    It is started on construction, in the running event loop.

    Args:
        name: what log and error messages call it.
        command: program and arguments.
        environment: all its variables.
        orphan_signal: what the kernel sends it when this process is killed (Linux only).
        output: file to append its output to; None: it inherits ours, and our stdin.
        inherits: descriptors that it gets.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        orphan_signal: signal.Signals,
        output: Path | None = None,
        inherits: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.command = command
        self.environment = environment
        self.orphan_signal = orphan_signal
        self.output = output
        self.inherits = inherits
        self.process: Process | None = None
        self.launched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running = asyncio.create_task(self.run())

    def clear(self) -> None:
        """Remove what an earlier process left. Called before each start and after the last end."""

    async def wait_ready(self, process: Process) -> None:
        """Return once the process does its work; at once, unless a subclass knows better.

        Raises:
            StartError: it does not, and has ended.
        """

    async def ready(self) -> None:
        """Wait until the process does its work.

        Raises:
            StartError: this attempt to start it failed (another one follows after a pause).
        """
        await asyncio.shield(self.launched)

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
            except (StartError, OSError) as failure:
                what = f"child_not_started name={self.name!r} reason={failure}"
                self.launched.set_exception(StartError(str(failure)))
                # Nothing awaits a restart, so the error must be retrieved here.
                self.launched.exception()
            else:
                self.launched.set_result(None)
                status = await self.process.wait()
                what = f"child_died name={self.name!r} status={status}"
            self.launched = loop.create_future()
            if loop.time() - began > MAX_PAUSE_S:
                restart.reset()
            pause = restart.next()
            logger.error("%s restart_in=%.1f", what, pause)
            await asyncio.sleep(pause)

    async def spawn(self) -> Process:
        """Start the process once."""
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self.output.open("ab")) if self.output else None
            return await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL if self.output else None,
                stdout=log,
                stderr=log,
                env=self.environment,
                pass_fds=self.inherits,
                preexec_fn=tie_to_parent(self.orphan_signal),
            )

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
                async with asyncio.timeout(grace_s):
                    await self.process.wait()
        self.send(signal.SIGKILL)
        await self.process.wait()
        self.clear()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended already."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
