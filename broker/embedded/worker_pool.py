"""The workers of the keeper, for namespaces that are used and not served otherwise."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.embedded.child import Child

START_TIMEOUT_S = 30.0
# A worker stops cleanly within 2 s.
STOP_GRACE_S = 5.0


class Worker(Child):
    """The process that serves one namespace, started on construction.

    Args:
        namespace: the namespace to serve.
        command: command to run; `--namespace=NS --ready-file=F` is appended.
        url: of the server; passed in STATEBROKER_URL, since all users can read a command line.
        directory: for the log and the ready file.
    """

    def __init__(
        self, namespace: str, command: Sequence[str], *, url: str, directory: Path
    ) -> None:
        name = f"workers-{namespace}"
        # A unique file: a worker that is still stopping must not be mistaken for its successor.
        self.ready_file = directory / f"{name}-{id(self):x}.ready"
        super().__init__(
            f"the worker for namespace {namespace!r}",
            [*command, f"--namespace={namespace}", f"--ready-file={self.ready_file}"],
            log=directory / f"{name}.log",
            start_timeout_s=START_TIMEOUT_S,
            # The program may have a password file for another server.
            environment={"STATEBROKER_URL": url, "STATEBROKER_PASSWORD_FILE": ""},
        )

    async def is_ready(self) -> bool:
        """Whether it wrote its ready file."""
        return self.ready_file.exists() and self.ready_file.stat().st_size > 0

    def clear(self) -> None:
        """Remove the ready file."""
        self.ready_file.unlink(missing_ok=True)


class WorkerPool:
    """One worker for each namespace that has users and that no attached process serves.

    Any number of workers may serve a namespace at once, so a running worker stays when an attached
    process starts to serve; it stops with the last user of the namespace.

    Args:
        find_command: returns the command that runs a worker; called when the first one is needed.
        url: of the server.
        directory: for the files of the workers.
    """

    def __init__(
        self, find_command: Callable[[], Sequence[str]], *, url: str, directory: Path
    ) -> None:
        self.find_command = find_command
        self.command: Sequence[str] = ()
        self.url = url
        self.directory = directory
        self.users: Counter[str] = Counter()
        self.servers: Counter[str] = Counter()
        self.workers: dict[str, Worker] = {}
        self.stopping: set[asyncio.Task[None]] = set()

    def add_server(self, namespace: str) -> None:
        """Count an attached process that serves the namespace."""
        self.servers[namespace] += 1

    def remove_server(self, namespace: str) -> None:
        """Remove such a process; start a worker if the namespace has users."""
        self.servers[namespace] -= 1
        self.reconcile(namespace)

    def add_user(self, namespace: str) -> None:
        """Count a user of the namespace; start a worker unless it is served.

        Raises:
            EmbeddedError: No command that runs a worker was found; the user is not counted.
        """
        self.command = self.command or self.find_command()
        self.users[namespace] += 1
        self.reconcile(namespace)

    def remove_user(self, namespace: str) -> None:
        """Remove a user; stop the worker after the last one."""
        self.users[namespace] -= 1
        self.reconcile(namespace)

    async def ready(self, namespace: str) -> None:
        """Wait until the namespace is served.

        Raises:
            EmbeddedError: The worker could not be started.
        """
        if namespace in self.workers:
            await self.workers[namespace].ready()

    async def stop(self) -> None:
        """Stop all workers, which may need the server until then."""
        self.users.clear()
        for namespace in list(self.workers):
            self.reconcile(namespace)
        await asyncio.gather(*self.stopping)

    def reconcile(self, namespace: str) -> None:
        """Start or stop the worker of the namespace, as its users and servers require."""
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
