"""The environments of the matrix: where objects are made and called; run as a program.

`matrix.py URL NAMESPACE ENVIRONMENT` prints one JSON object: "Class.method" -> ["ok"],
["raised", type, text], or ["hung"].
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import broker
from broker import aio
from tests.processes.runtime.matrix_arguments import with_strange_arguments
from tests.processes.runtime.matrix_calls import (
    LIMIT_S,
    all_calls,
    bounded,
    made,
    methods,
    outcome,
)

# -- environments of the sync face -----------------------------------------------------------------


def on_a_thread(url: str, namespace: str) -> dict[str, Any]:
    """Call from a thread that did not make the objects."""
    return all_calls(made(url, namespace), bounded)


def in_a_running_loop(url: str, namespace: str) -> dict[str, Any]:
    """Make, call and close where an event loop runs on this thread, as in a notebook's cell."""

    async def cell() -> dict[str, Any]:
        return all_calls(made(url, namespace), outcome)

    return asyncio.run(cell())


def in_a_fork(url: str, namespace: str) -> dict[str, Any]:
    """Call in a forked child what the parent made, as after gunicorn's --preload."""
    objects = made(url, namespace)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(writer, "w") as file:
            file.write(json.dumps(all_calls(objects, bounded)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        found: dict[str, Any] = json.loads(file.read())
    os.waitpid(pid, 0)
    # The parent's objects are unharmed.
    objects[-1].set("k", 3)
    objects[-2].wait_for(objects[-1].flush(10), 10)
    for one in reversed(objects[-3:]):
        one.close()
    return found


def _in_child(url: str, namespace: str, pipe: Any) -> None:
    pipe.send(all_calls(made(url, namespace), bounded))


def in_multiprocessing(method: str) -> Callable[[str, str], dict[str, Any]]:
    """Return what makes and calls in a child of multiprocessing, beside objects of the parent."""

    def run(url: str, namespace: str) -> dict[str, Any]:
        context = multiprocessing.get_context(method)
        with broker.Producer(url, namespace=namespace) as producer:
            producer.set("parent", 1)
            mine, theirs = context.Pipe()
            process = context.Process(target=_in_child, args=(url, namespace, theirs))
            process.start()
            assert mine.poll(60)
            found: dict[str, Any] = mine.recv()
            process.join()
        return found

    return run


def in_a_signal_handler(url: str, namespace: str) -> dict[str, Any]:
    """Call in a handler that interrupts writes and reads of the same objects in a tight loop."""
    objects = made(url, namespace)
    *_, writer, _inspector, replica, producer = objects
    calls = [pair for one in objects for pair in methods(one)]
    found: dict[str, Any] = {}

    def handle(_number: int, _frame: Any) -> None:
        label, act = calls.pop(0)
        found[label] = outcome(act)

    signal.signal(signal.SIGALRM, handle)
    n = 0
    while calls:
        left = len(calls)
        signal.setitimer(signal.ITIMER_REAL, 0.003)
        while len(calls) == left:
            n += 1
            # Closed objects refuse; the loop goes on to interrupt what it can.
            outcome(lambda: producer.set(f"k{n % 9}", {"n": n}))  # noqa: B023 - called at once
            outcome(lambda: writer.set("a", 2.0))
            outcome(lambda: replica.get("k"))
    return found


def in_the_function_of_read(url: str, namespace: str) -> dict[str, Any]:
    """Call on the replica's own thread: in the function that is given to TableView.read()."""
    objects = made(url, namespace)
    found: dict[str, Any] = {}
    for one in objects[:4] + objects[6:7]:
        for label, act in methods(one):
            view = (
                broker.Replica(url, namespace=namespace).table("t") if not objects else objects[2]
            )
            if label.endswith((".__next__",)):
                # An iterator has no timeout by design; there the user waits for himself.
                continue
            found[label] = bounded(lambda act=act, view=view: view.read(lambda _: act()))
    return found


def in_a_garbage_cycle(url: str, namespace: str) -> dict[str, Any]:
    """Call in a finalizer that the garbage collector runs, after a cycle was forgotten."""
    objects = made(url, namespace)
    found: dict[str, Any] = {}

    class Node:
        def __init__(self, label: str, act: Callable[[], Any]) -> None:
            self.itself, self.label, self.act = self, label, act

        def __del__(self) -> None:
            found[self.label] = outcome(self.act)

    for one in objects:
        for label, act in methods(one):
            Node(label, act)
            gc.collect()
    return found


def at_the_exit(url: str, namespace: str) -> dict[str, Any]:
    """Call while the program ends: in an exit handler, with threads of executors gone."""
    import atexit  # noqa: PLC0415 - registered before that of the product

    objects = made(url, namespace)
    atexit.register(lambda: told(all_calls(objects, bounded)))
    return {}


def without_threads(url: str, namespace: str) -> dict[str, Any]:
    """Call where no thread can be started any more."""
    objects = made(url, namespace)

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refused  # type: ignore[method-assign]
    found = all_calls(objects, outcome)
    for kind in (broker.Producer, broker.Replica, broker.Inspector):
        found[kind.__name__] = outcome(lambda kind=kind: kind(url, namespace=namespace))
    return found


# -- environments of asyncio -----------------------------------------------------------------------


async def made_aio(url: str, namespace: str) -> list[Any]:
    """Return objects of all classes of the asyncio face, in use."""
    producer = await aio.Producer(url, namespace=namespace).open()
    replica = await aio.Replica(url, namespace=namespace).open()
    writer = producer.table("t")
    await writer.set("a", 1.0)
    await producer.set("k", 1)
    await replica.wait_for(await producer.flush(10), 10)
    changes, statuses = replica.changes(), replica.statuses()
    await producer.set("k", 2)
    await replica.wait_for(await producer.flush(10), 10)
    view = replica.table("t")
    inspector = await aio.Inspector(url, namespace=namespace).open()
    return [changes, statuses, view, view.parts[0], writer, inspector, replica, producer]


async def all_awaited(objects: list[Any]) -> dict[str, Any]:
    """Call and await everything on all objects."""
    found: dict[str, Any] = {}
    for one in objects:
        for label, act in methods(one):
            try:
                async with asyncio.timeout(LIMIT_S):
                    result = act()
                    if inspect.isawaitable(result):
                        await result
                found[label] = ["ok"]
            except StopAsyncIteration:
                found[label] = ["ok"]
            except TimeoutError as error:
                found[label] = ["raised", "TimeoutError", str(error)] if str(error) else ["hung"]
            except Exception as error:  # noqa: BLE001 - the point
                found[label] = ["raised", type(error).__name__, str(error)[:300]]
    return found


def aio_in_its_loop(url: str, namespace: str) -> dict[str, Any]:
    """Call where the objects were opened."""

    async def run() -> dict[str, Any]:
        return await all_awaited(await made_aio(url, namespace))

    return asyncio.run(run())


def aio_in_a_second_loop(url: str, namespace: str) -> dict[str, Any]:
    """Call in another asyncio.run than the one that opened them."""
    objects = asyncio.run(made_aio(url, namespace))
    return asyncio.run(all_awaited(objects))


def aio_on_another_loop(url: str, namespace: str) -> dict[str, Any]:
    """Call on the loop of another thread, while their own loop runs."""

    async def run() -> dict[str, Any]:
        objects = await made_aio(url, namespace)
        found = await asyncio.to_thread(lambda: asyncio.run(all_awaited(objects)))
        for one in reversed(objects[-3:]):
            await one.close()
        return found

    return asyncio.run(run())


def aio_in_a_fork(url: str, namespace: str) -> dict[str, Any]:
    """Call in a forked child what the parent opened."""
    with asyncio.Runner() as runner:
        objects = runner.run(made_aio(url, namespace))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            with os.fdopen(writer, "w") as file:
                file.write(json.dumps(asyncio.run(all_awaited(objects))))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            found: dict[str, Any] = json.loads(file.read())
        os.waitpid(pid, 0)
        runner.run(objects[-1].set("k", 3))
        for one in reversed(objects[-3:]):
            runner.run(one.close())
    return found


def aio_before_open(url: str, namespace: str) -> dict[str, Any]:
    """Call on objects that were never opened."""

    async def run() -> dict[str, Any]:
        kinds = (aio.Producer, aio.Replica, aio.Inspector)
        return await all_awaited([kind(url, namespace=namespace) for kind in kinds])

    return asyncio.run(run())


ENVIRONMENTS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "thread": on_a_thread,
    "running loop": in_a_running_loop,
    "fork": in_a_fork,
    "multiprocessing fork": in_multiprocessing("fork"),
    "spawn": in_multiprocessing("spawn"),
    "forkserver": in_multiprocessing("forkserver"),
    "signal handler": in_a_signal_handler,
    "function of read": in_the_function_of_read,
    "garbage cycle": in_a_garbage_cycle,
    "exit": at_the_exit,
    "no threads": without_threads,
    "strange arguments": with_strange_arguments,
    "asyncio": aio_in_its_loop,
    "asyncio, second loop": aio_in_a_second_loop,
    "asyncio, another loop": aio_on_another_loop,
    "asyncio, fork": aio_in_a_fork,
    "asyncio, before open": aio_before_open,
}


def told(found: dict[str, Any]) -> None:
    """Print what happened."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run one environment and print what happened."""
    faulthandler.dump_traceback_later(150, exit=True)
    url, namespace, environment = sys.argv[1:]
    found = ENVIRONMENTS[environment](url, namespace)
    if found:
        told(found)


if __name__ == "__main__":
    main()
