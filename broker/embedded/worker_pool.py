"""The workers that the keeper runs, for namespaces which are used and which nobody else serves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from broker.embedded.child import Child

START_TIMEOUT_S = 30.0
# A worker promises to stop cleanly within 2 s.
STOP_GRACE_S = 5.0


class Worker(Child):
    """The process that serves one namespace, started when made.

    Args:
        namespace: what it serves.
        command: what to run; `--namespace=NS --ready-file=F` is appended.
        url: the server, handed over in STATEBROKER_URL: a command line is for everybody to read.
        directory: gets the log and the ready file.
    """

    def __init__(
        self, namespace: str, command: Sequence[str], *, url: str, directory: Path
    ) -> None:
        name = f"workers-{namespace}"
        # Its own file: one that is still stopping must not be taken for its successor.
        self.ready_file = directory / f"{name}-{id(self):x}.ready"
        super().__init__(
            f"the worker for namespace {namespace!r}",
            [*command, f"--namespace={namespace}", f"--ready-file={self.ready_file}"],
            log=directory / f"{name}.log",
            start_timeout_s=START_TIMEOUT_S,
            # A password that the program has for another server is not for this one.
            environment={"STATEBROKER_URL": url, "STATEBROKER_PASSWORD_FILE": ""},
        )

    async def is_ready(self) -> bool:
        """Tell whether it wrote its ready file."""
        return self.ready_file.exists() and self.ready_file.stat().st_size > 0

    def clear(self) -> None:
        """Remove the ready file."""
        self.ready_file.unlink(missing_ok=True)


class Crew:
    """One worker for each namespace that has users and that no attached process serves.

    Any number of workers may serve a namespace at once, so one that runs already is left alone
    when somebody else starts to serve; it goes with the namespace's last user.

    Args:
        command: how to run a worker.
        url: the server.
        directory: gets the workers' files.
    """

    def __init__(self, command: Sequence[str], *, url: str, directory: Path) -> None:
        self.command = command
        self.url = url
        self.directory = directory
        self.users: Counter[str] = Counter()
        self.servers: Counter[str] = Counter()
        self.workers: dict[str, Worker] = {}
        self.stopping: set[asyncio.Task[None]] = set()

    def add_server(self, namespace: str) -> None:
        """Note that an attached process serves the namespace."""
        self.servers[namespace] += 1

    def remove_server(self, namespace: str) -> None:
        """Note that such a process is gone, and stand in for it if there are users."""
        self.servers[namespace] -= 1
        self.settle(namespace)

    def add_user(self, namespace: str) -> None:
        """Note a user of the namespace; a worker is started unless somebody serves it."""
        self.users[namespace] += 1
        self.settle(namespace)

    def remove_user(self, namespace: str) -> None:
        """Note that a user is gone; the worker goes with the last one."""
        self.users[namespace] -= 1
        self.settle(namespace)

    async def ready(self, namespace: str) -> None:
        """Wait until the namespace is served.

        Raises:
            EmbeddedError: The worker could not be started.
        """
        if namespace in self.workers:
            await self.workers[namespace].ready()

    async def stop(self) -> None:
        """Stop all workers; they may still need the server."""
        self.users.clear()
        for namespace in list(self.workers):
            self.settle(namespace)
        await asyncio.gather(*self.stopping)

    def settle(self, namespace: str) -> None:
        """Start or stop the namespace's worker, as users and servers now demand."""
        is_used = self.users[namespace] > 0
        if namespace in self.workers and not is_used:
            worker = self.workers.pop(namespace)
            stop = asyncio.create_task(worker.stop(STOP_GRACE_S))
            self.stopping.add(stop)
            stop.add_done_callback(self.stopping.discard)
        elif namespace not in self.workers and is_used and not self.servers[namespace]:
            self.workers[namespace] = Worker(
                namespace, self.command, url=self.url, directory=self.directory
            )
