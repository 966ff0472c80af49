"""What the worker processes are made of: one session, a flush worker or a scheduler or both."""

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
from broker.embedded.child import tie_to_parent
from broker.errors import AccessError, ConnectError
from broker.runtime.backoff import Backoff
from workers.flush import FlushWorker
from workers.loop import Stopped, first_of, stop_on_signals, unless_stopped
from workers.scheduler import Scheduler

log = logging.getLogger(__name__)

T = TypeVar("T")

RESTART_FIRST = 0.1
RESTART_MAX = 5.0
CHILD_STOP_TIMEOUT = 1.2
AWAY_FIRST = 0.1
AWAY_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Roles:
    """What a worker process does.

    Attributes:
        flush: publish what is due.
        schedule: write the full state.
        helpers: further processes that only flush.
    """

    flush: bool
    schedule: bool
    helpers: int = 0


async def connected(url: str | None, namespace: str, shards: int | None) -> Session:
    """Return a session for workers, the namespace made or joined.

    Raises:
        BackendError, NamespaceMismatchError: with the fix.
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
    """Run the roles until SIGTERM or SIGINT; returns within 2 s of it, nothing left half done.

    A server that is not there (yet) is waited for.

    Args:
        url: any supported URL.
        namespace: a checked name.
        roles: what to do.
        settings: checked settings.
        given: names of settings that somebody gave; only those change a running namespace's
            thresholds.
        ready_file: gets the URL for clients once everything is up.

    Raises:
        BrokerError: could not start, and waiting would not help; with the fix.
    """
    stop = stop_on_signals()
    if ready_file is not None:
        # One that a killed process left must not be believed.
        remove_ready(ready_file)
    shards = settings["shards"] if "shards" in given else None

    async def begin() -> tuple[Session, FlushWorker | None]:
        session = await unless_stopped(connected(url, namespace, shards), stop, grace=0.0)
        if not roles.flush:
            return session, None
        worker = flush_worker(session, settings, given)
        try:
            # What is due is published, and the first heartbeat told, before anybody hears of us.
            with contextlib.suppress(Stopped):
                await unless_stopped(worker.poll(), stop)
        except BaseException:
            await session.close()
            raise
        return session, worker

    try:
        session, worker = await once_there(begin, stop)
    except Stopped:
        return
    # What was imported stays: to look through it again takes the collector 20 ms, and all wait.
    gc.freeze()
    try:
        jobs = []
        if worker is not None:
            jobs.append(worker.run(stop))
        if roles.schedule:
            jobs.append(scheduler(session, settings).run(stop))
        jobs += [
            keep_helper(number, session, settings, given, stop) for number in range(roles.helpers)
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
            # One that fails must not leave the process half alive.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            stop.set()
            await asyncio.gather(*tasks)
    finally:
        if ready_file is not None:
            remove_ready(ready_file)
        await session.close()


async def once_there(begin: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T:
    """Return what `begin` returns, tried again and again, with jitter, while the server is away.

    Raises:
        Stopped: while waiting.
        BrokerError: the server is there, but something is wrong that does not pass by itself.
    """
    retry = Backoff(AWAY_FIRST, AWAY_MAX)
    while True:
        try:
            return await begin()
        except AccessError:
            raise
        except ConnectError as error:
            pause = retry.next()
            log.warning("server_away retry_in=%.2f error=%s", pause, error)
        await first_of(pause, stop)
        if stop.is_set():
            raise Stopped


def flush_worker(session: Session, settings: dict[str, Any], given: frozenset[str]) -> FlushWorker:
    """Make the flush worker that the settings describe."""
    return FlushWorker(
        session,
        f"flush-{default_node()}",
        heartbeat_interval=settings["heartbeat_interval"],
        max_age=settings["local_delta_max_age"] if "local_delta_max_age" in given else None,
        max_count=settings["local_delta_max_count"] if "local_delta_max_count" in given else None,
        limits=DrainLimits(log_bytes=settings["log_bytes"]),
    )


def scheduler(session: Session, settings: dict[str, Any]) -> Scheduler:
    """Make the scheduler that the settings describe."""
    return Scheduler(
        session,
        f"schedule-{default_node()}",
        interval=settings["global_data_update_interval"],
        log_retention=settings["log_retention"],
        log_limit=settings["log_bytes"],
    )


async def keep_helper(
    number: int,
    session: Session,
    settings: dict[str, Any],
    given: frozenset[str],
    stop: asyncio.Event,
) -> None:
    """Keep one more flush process running; one that dies is started again, ever later."""
    # The URL may hold a password: it goes by the environment, which other users cannot see.
    environment = os.environ | {
        "STATEBROKER_URL": session.connections.url,
        "STATEBROKER_PASSWORD_FILE": "",
        "STATEBROKER_NAMESPACE": session.namespace,
        # What this process was given is all that counts, whatever file lies around.
        "STATEBROKER_CONFIG": os.devnull,
    }
    verbose = ["--verbose"] if log.isEnabledFor(logging.DEBUG) else []
    for name in given:
        environment[f"STATEBROKER_{name.upper()}"] = str(settings[name])
    restart = Backoff(RESTART_FIRST, RESTART_MAX)
    while not stop.is_set():
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "workers", "flush", *verbose),
            env=environment,
            # However this process ends, its helpers do not go on alone.
            preexec_fn=tie_to_parent(signal.SIGTERM),
        )
        ended = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            await _stop_child(child, ended)
            return
        pause = restart.next()
        log.error(
            "helper_died number=%d status=%s restart_in=%.1f", number, child.returncode, pause
        )
        await first_of(pause, stop)


async def _stop_child(child: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(CHILD_STOP_TIMEOUT):
            await ended
    except TimeoutError:
        child.kill()
        await child.wait()


def write_ready(path: Path, url: str) -> None:
    """Write the URL so that a reader sees all of it or nothing; only its owner can read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(url + "\n")
    draft.replace(path)


def remove_ready(path: Path) -> None:
    """Take the ready file away: clients should not come any more."""
    path.unlink(missing_ok=True)
