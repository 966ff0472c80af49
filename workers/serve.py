"""The worker processes: one session, with a flush worker, a scheduler or both."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from broker.backend.replies import DrainLimits
from broker.backend.session import Session
from broker.config import default_node
from broker.engine.settings import warn_of_conflicts
from broker.errors import BackendError
from broker.protocol.state_bounds import StateBounds
from broker.runtime.backoff import Backoff
from broker.runtime.child import Child
from broker.runtime.outage_log import OutageLog
from workers.flush import FlushWorker
from workers.loop import Stopped, run_until_stopped, stop_on_signals, wait_for_any
from workers.scheduler import Scheduler

log = logging.getLogger(__name__)

T = TypeVar("T")

HELPER_STOP_TIMEOUT_S = 1.2
AWAY_FIRST = 0.1
AWAY_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of a worker process.

    Attributes:
        flush: publish due deltas.
        schedule: write the full state.
        helpers: number of additional flush processes.
    """

    flush: bool
    schedule: bool
    helpers: int = 0


async def connected(url: str | None, namespace: str, shards: int | None) -> Session:
    """Return a connected session for workers, after creating or joining the namespace.

    Raises:
        BackendError, NamespaceMismatchError: cannot connect or join.
    """
    session = Session(url, namespace, shards)
    try:
        await session.connect(as_worker=True)
        await session.create_or_join()
    except BaseException:
        await session.close()
        raise
    return session


async def serve(
    url: str | None,
    namespace: str,
    roles: Roles,
    settings: dict[str, Any],
    *,
    given: frozenset[str] = frozenset(),
    ready_file: Path | None = None,
) -> None:
    """Run the roles until SIGTERM or SIGINT, then stop within 2 s.

    Waits for a server that is not reachable (yet).

    Args:
        url: any supported URL.
        namespace: a validated name.
        roles: what to run.
        settings: validated settings.
        given: names of settings that were set explicitly; only those change the thresholds of an
            existing namespace.
        ready_file: receives the URL for clients once everything runs.

    Raises:
        BrokerError: cannot start, and waiting would not help.
    """
    stop = stop_on_signals()
    if ready_file is not None:
        # A killed process may have left one.
        remove_ready(ready_file)
    # No error: replicas may have other settings.
    warn_of_conflicts(settings)
    shards = settings["shards"] if "shards" in given else None

    async def start() -> tuple[Session, FlushWorker | None]:
        session = await run_until_stopped(connected(url, namespace, shards), stop, grace=0.0)
        if not roles.flush:
            return session, None
        worker = flush_worker(session, settings, given)
        try:
            # Publish due deltas and the first heartbeat before the ready file is written.
            with contextlib.suppress(Stopped):
                await run_until_stopped(worker.poll(), stop)
        except BaseException:
            await session.close()
            raise
        return session, worker

    try:
        session, worker = await retry_while_away(start, stop)
    except Stopped:
        return
    # Imported objects are permanent; without this the collector takes 20 ms to scan them.
    gc.freeze()
    try:
        jobs = []
        if worker is not None:
            jobs.append(worker.run(stop))
        if roles.schedule:
            jobs.append(scheduler(session, settings).run(stop))
        jobs += [
            run_helper(number, session, settings, given, stop) for number in range(roles.helpers)
        ]
        tasks = [asyncio.create_task(job) for job in jobs]
        if ready_file is not None:
            write_ready(ready_file, session.connections.url)
        log.info(
            "serving namespace=%s server=%s shards=%d flush=%s schedule=%s helpers=%d",
            *(namespace, session.connections.name, len(session.keys)),
            *(roles.flush, roles.schedule, roles.helpers),
        )
        try:
            # If one task fails, end the others too.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            stop.set()
            await asyncio.gather(*tasks)
    finally:
        if ready_file is not None:
            remove_ready(ready_file)
        await session.close()


async def retry_while_away(start: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T:
    """Return the result of `start`; retry with backoff while waiting may help.

    Raises:
        Stopped: the process must stop.
        BrokerError: waiting does not help.
    """
    retry, outage = Backoff(AWAY_FIRST, AWAY_MAX), OutageLog(log, "server_away")
    while True:
        try:
            started = await start()
        except BackendError as error:
            if not error.is_temporary:
                raise
            outage.failed(error)
        else:
            outage.ended()
            return started
        await wait_for_any(retry.next(), stop)
        if stop.is_set():
            raise Stopped


def flush_worker(session: Session, settings: dict[str, Any], given: frozenset[str]) -> FlushWorker:
    """Return the flush worker for these settings."""
    return FlushWorker(
        session,
        f"flush-{default_node()}",
        heartbeat_interval=settings["heartbeat_interval"],
        max_age=settings["local_delta_max_age"] if "local_delta_max_age" in given else None,
        max_count=settings["local_delta_max_count"] if "local_delta_max_count" in given else None,
        limits=DrainLimits(log_bytes=settings["log_bytes"]),
    )


def scheduler(session: Session, settings: dict[str, Any]) -> Scheduler:
    """Return the scheduler for these settings."""
    return Scheduler(
        session,
        f"schedule-{default_node()}",
        interval=settings["global_data_update_interval"],
        log_retention=settings["log_retention"],
        log_limit=settings["log_bytes"],
        bounds=StateBounds.of(settings["max_keys"], settings["max_state_bytes"], len(session.keys)),
    )


async def run_helper(
    number: int,
    session: Session,
    settings: dict[str, Any],
    given: frozenset[str],
    stop: asyncio.Event,
) -> None:
    """Keep an additional flush process running until `stop`."""
    # The URL may hold a password, so it is passed in the environment, hidden from other users.
    environment = os.environ | {
        "STATEBROKER_URL": session.connections.url,
        "STATEBROKER_PASSWORD_FILE": "",
        "STATEBROKER_NAMESPACE": session.namespace,
        # The helper uses the settings of this process, and no settings file.
        "STATEBROKER_CONFIG": os.devnull,
    }
    verbose = ["--verbose"] if log.isEnabledFor(logging.DEBUG) else []
    for name in given:
        environment[f"STATEBROKER_{name.upper()}"] = str(settings[name])
    helper = Child(
        f"flush helper {number}",
        [sys.executable, "-m", "workers", "flush", *verbose],
        environment=environment,
        orphan_signal=signal.SIGTERM,
    )
    await stop.wait()
    await helper.stop(HELPER_STOP_TIMEOUT_S)


def write_ready(path: Path, url: str) -> None:
    """Write the URL so that a reader sees all of it or nothing; only its owner can read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(url + "\n")
    draft.replace(path)


def remove_ready(path: Path) -> None:
    """Remove the ready file: clients should no longer connect."""
    path.unlink(missing_ok=True)
