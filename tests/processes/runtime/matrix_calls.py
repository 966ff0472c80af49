"""Calls every public method of every class, found by introspection; see `matrix`."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import broker
from broker.model import Token

# Longer than any call may take with the timeouts of `ARGUMENTS`.
LIMIT_S = 8.0
SHORT_S = 0.5

# Arguments by the name of a parameter; a parameter without a default that is not here is an error.
ARGUMENTS: dict[str, Any] = {
    "key": "k", "value": {"n": 1}, "amount": 1, "mapping": {"k1": 1}, "name": "t",
    "timeout": SHORT_S, "token": Token({}), "look": lambda view: view.copy(), "shard": 0,
    "position": None, "keys": ["a"], "values": [1.0], "amounts": [1.0],
}  # fmt: skip
# By class, where a name has another meaning.
SPECIAL: dict[str, dict[str, Any]] = {
    "TableView.__getitem__": {"key": "a"},
    "TableView.timestamp": {"key": "a"},
    "Producer.table": {"keys": str, "values": float},
    "Replica.table": {"keys": str, "values": float},
    "TableWriter.set": {"value": 1.0},
    "TableWriter.set_records": {"records": b""},
}  # fmt: skip
SKIPPED = {"to_pandas", "to_arrow"}  # need packages that may be missing
SPECIAL_METHODS = ("__getitem__", "__len__", "__iter__", "__contains__", "__next__", "__anext__")
LAST = ("close", "open", "__enter__", "__exit__", "__aenter__", "__aexit__")


def methods(one: object) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield name and call of each public member of an object; those that end it come last."""
    names = [name for name in dir(type(one)) if not name.startswith("_")]
    names += [name for name in SPECIAL_METHODS if hasattr(type(one), name)]
    for name in sorted(names, key=lambda name: (name in LAST, name)):
        if name in SKIPPED or name == "open":
            continue
        label = f"{type(one).__name__}.{name}"
        if isinstance(inspect.getattr_static(type(one), name), property):
            yield label, lambda name=name: getattr(one, name)
        else:
            yield label, lambda name=name, label=label: call(getattr(one, name), label)


def call(method: Callable[..., Any], label: str) -> Any:
    """Call a method with arguments by the names of its parameters."""
    given = ARGUMENTS | SPECIAL.get(label, {})
    positional, named = [], {}
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except ValueError:
        parameters = []
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        if one.default is one.empty and one.name not in given:
            positional.append("k")
        elif one.default is one.empty or one.name == "timeout":
            if one.kind is one.KEYWORD_ONLY:
                named[one.name] = given[one.name]
            else:
                positional.append(given[one.name])
    return method(*positional, **named)


def outcome(act: Callable[[], Any]) -> list[str]:
    """Call something, and say how that ended."""
    try:
        act()
    except StopIteration:
        return ["ok"]
    except Exception as error:  # noqa: BLE001 - the point
        return ["raised", type(error).__name__, str(error)[:300]]
    return ["ok"]


def bounded(act: Callable[[], Any]) -> list[str]:
    """Call something on a thread of its own, for a limited time."""
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(outcome(act)), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return found[0] if found else ["hung"]


def made(url: str, namespace: str) -> list[Any]:
    """Return objects of all classes of the sync face, in use."""
    producer = broker.Producer(url, namespace=namespace)
    replica = broker.Replica(url, namespace=namespace)
    writer = producer.table("t")
    writer.set("a", 1.0)
    producer.set("k", 1)
    replica.wait_for(producer.flush(10), 10)
    changes, statuses = replica.changes(), replica.statuses()
    producer.set("k", 2)
    replica.wait_for(producer.flush(10), 10)
    view = replica.table("t")
    # The replica and the producer last, because closing them ends the others.
    inspector = broker.Inspector(url, namespace=namespace)
    return [changes, statuses, view, view.parts[0], writer, inspector, replica, producer]


def all_calls(objects: list[Any], run: Callable[[Callable[[], Any]], list[str]]) -> dict[str, Any]:
    """Call everything on all objects."""
    return {label: run(act) for one in objects for label, act in methods(one)}
