"""What the demo runs on: a server, two flush workers and two schedulers."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from broker.backend.connections import Connections, attached, check_server
from scripts.flights.processes import Child, Children, DemoError

# Two of each kind: one can be killed, and the other continues.
WORKERS = {"flusher": ("flush", 2), "scheduler": ("schedule", 2)}
SETTINGS = {
    "STATEBROKER_LOCAL_DELTA_MAX_AGE": "50ms",
    # At the default speed a busy morning reaches the count first, a quiet night the age.
    "STATEBROKER_LOCAL_DELTA_MAX_COUNT": "200",
    "STATEBROKER_GLOBAL_DATA_UPDATE_INTERVAL": "1s",
}
READY_TIMEOUT_S = 60.0
POLL_S = 0.02


class Deployment:
    """The server and the processes of one run.

    Args:
        url: URL of the server.
        namespace: used by this run alone.
        folder: for files of this run.
        children: all processes of this run.
    """

    def __init__(self, url: str, namespace: str, folder: Path, children: Children) -> None:
        self.url = url
        self.namespace = namespace
        self.folder = folder
        self.children = children
        self.workers: dict[str, list[Child]] = {}
        self.ready_files: list[Path] = []

    def start_workers(self) -> None:
        """Start all workers, without waiting for them."""
        for kind, (command, count) in WORKERS.items():
            self.workers[kind] = []
            for number in range(1, count + 1):
                file = self.folder / f"{kind}-{number}.ready"
                child = self.children.start(
                    f"{kind} {number}",
                    "broker.runtime.leash",
                    *("workers", command, "--ready-file", str(file)),
                )
                self.workers[kind].append(child)
                self.ready_files.append(file)

    def are_workers_ready(self) -> bool:
        """Return whether all workers have reported that they are ready."""
        return all(file.exists() for file in self.ready_files)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition while all processes run.

        Raises:
            DemoError: a process ended, or the condition did not come true in time.
        """
        deadline = monotonic() + READY_TIMEOUT_S
        while not condition():
            self.children.check()
            if monotonic() > deadline:
                raise DemoError(f"waited {READY_TIMEOUT_S:.0f} s in vain for {what}")
            sleep(POLL_S)


async def check(url: str) -> None:
    """Check that the server can be used.

    Raises:
        BrokerError: it cannot be reached or used; the message says how to fix it.
    """
    connections = Connections(url)
    try:
        await check_server(connections.commands(), connections.name)
    finally:
        await connections.close()


@contextmanager
def deployed(url: str | None) -> Iterator[Deployment]:
    """Start the workers, and a server unless there is a URL; stop all of them on leaving.

    Args:
        url: of a running server; None starts one for this run.

    Raises:
        BrokerError: the server cannot be reached or used; the message says how to fix it.
    """
    with ExitStack() as exits:
        folder = Path(exits.enter_context(TemporaryDirectory(prefix="statebroker-demo-")))
        url, attachment = attached(url)
        if attachment is not None:
            exits.callback(attachment.close)
        # So a problem of the server is reported once, and not by each process.
        asyncio.run(check(url))
        # A shared server may hold the state of an earlier demo.
        namespace = f"flights-{token_hex(4)}"
        environment = {"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace}
        children = exits.enter_context(Children(folder, environment | SETTINGS))
        deployment = Deployment(url, namespace, folder, children)
        deployment.start_workers()
        yield deployment
