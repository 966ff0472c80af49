"""Calls each public method with a value of a strange type for each of its parameters."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import broker
from tests.processes.runtime.matrix_calls import (
    ARGUMENTS,
    LAST,
    SHORT_S,
    SKIPPED,
    SPECIAL,
    SPECIAL_METHODS,
    bounded,
    made,
)

CLASSES = (broker.Producer, broker.Replica, broker.Inspector)


def strange() -> list[Any]:
    """Return arguments of types that hardly any parameter takes."""
    return [None, 3, -1.5, float("nan"), b"bytes", "text", [1], {"a": 1}, object(), (), True, len]


def with_strange_arguments(url: str, namespace: str) -> dict[str, Any]:
    """Call all methods and constructors; the other arguments are right."""
    found: dict[str, Any] = {}
    for one in made(url, namespace):
        for name in dir(type(one)):
            is_called = name not in LAST + tuple(SKIPPED) and (
                not name.startswith("_") or name in SPECIAL_METHODS
            )
            if is_called and callable(inspect.getattr_static(type(one), name)):
                label = f"{type(one).__name__}.{name}"
                for text, act in method_calls(label, getattr(one, name)):
                    found[text] = bounded(act)
    for kind in CLASSES:
        for text, act in constructions(kind, url, namespace):
            found[text] = bounded(act)
    return found


def method_calls(label: str, method: Callable[..., Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is called, and the call."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except ValueError:
        return
    usual = ARGUMENTS | SPECIAL.get(label, {})
    right = {
        one.name: usual.get(one.name, "k")
        for one in parameters
        if one.default is one.empty or one.name == "timeout"
    }
    for one in parameters:
        for value in strange():
            given = right | {one.name: value}
            if given.get("timeout", SHORT_S) in (None, 3, True):
                # They are allowed, and would be waited for.
                given["timeout"] = SHORT_S
            yield f"{label}({one.name}={value!r:.20})", lambda given=given: method(**given)


def constructions(kind: Any, url: str, namespace: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is constructed, and the call."""
    names = {"url", "namespace"}
    if kind is not broker.Inspector:
        engine = sys.modules[f"broker.engine.{kind.__name__.lower()}"]
        names |= set(getattr(engine, f"{kind.__name__}Settings").__annotations__)
    for name in sorted(names):
        for value in strange():
            # A server or namespace of its own would be right.
            if name in ("url", "namespace") and (value is None or value == "text"):
                continue
            given = {"url": url, "namespace": namespace} | {name: value}
            text = f"{kind.__name__}({name}={value!r:.20})"
            yield text, lambda given=given: kind(**given).close()
