"""What the demo is played on: a server, two flush workers and two schedulers, all of them ready."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from broker.backend.connections import Connections, attached, check_server
from scripts.flights.processes import Child, Children, DemoError

# Of two workers of a kind one can be killed, and the other carries on.
WORKERS = {"flusher": ("flush", 2), "scheduler": ("schedule", 2)}
SETTINGS = {
    "STATEBROKER_LOCAL_DELTA_MAX_AGE": "50ms",
    # At the default speed a busy morning reaches the count first, and a quiet night the age.
    "STATEBROKER_LOCAL_DELTA_MAX_COUNT": "200",
    "STATEBROKER_GLOBAL_DATA_UPDATE_INTERVAL": "1s",
}
READY_TIMEOUT_S = 60.0
POLL_S = 0.02


class Stage:
    """Where the processes meet, and the workers that are there.

    Args:
        url: of the server.
        namespace: of this run alone.
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
        """Start all workers at once, and do not wait for them."""
        for kind, (command, count) in WORKERS.items():
            self.workers[kind] = []
            for number in range(1, count + 1):
                file = self.folder / f"{kind}-{number}.ready"
                child = self.children.start(
                    f"{kind} {number}",
                    "scripts.flights.leash",
                    *("workers", command, "--ready-file", str(file)),
                )
                self.workers[kind].append(child)
                self.ready_files.append(file)

    def are_workers_ready(self) -> bool:
        """Tell whether all workers have told so."""
        return all(file.exists() for file in self.ready_files)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition while all processes live.

        Raises:
            DemoError: a process ended, or the condition did not come true in time.
        """
        deadline = monotonic() + READY_TIMEOUT_S
        while not condition():
            self.children.check()
            if monotonic() > deadline:
                raise DemoError(f"waited {READY_TIMEOUT_S:.0f} s for {what}")
            sleep(POLL_S)


async def check(url: str) -> None:
    """Ask the server whether it is fit for the demo.

    Raises:
        BrokerError: it is not there, or not fit; with the fix.
    """
    connections = Connections(url)
    try:
        await check_server(connections.commands(), connections.name)
    finally:
        await connections.close()


@contextmanager
def stage(url: str | None) -> Iterator[Stage]:
    """Set the stage, on a server of its own unless told one; clear it on leaving.

    Raises:
        BrokerError: the server is not there, or not fit; with the fix.
    """
    with ExitStack() as exits:
        folder = Path(exits.enter_context(TemporaryDirectory(prefix="statebroker-demo-")))
        url, attachment = attached(url)
        if attachment is not None:
            exits.callback(attachment.close)
        # What is wrong with a server is told here, in one line, and not by each process.
        asyncio.run(check(url))
        # On a server that others use too, the demo must not meet what an earlier one left.
        namespace = f"flights-{token_hex(4)}"
        place = {"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace}
        children = exits.enter_context(Children(folder, place | SETTINGS))
        there = Stage(url, namespace, folder, children)
        there.start_workers()
        yield there
