"""Both faces promise the same: each public method of one is found on the other, word for word."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from broker import aio
from broker.aio import iterator as aio_iterator
from broker.aio import table_writer as aio_table_writer
from broker.sync import inspector, iterator, producer, replica, table_writer

PAIRS = [
    pytest.param(aio.Producer, producer.Producer, id="Producer"),
    pytest.param(aio.Replica, replica.Replica, id="Replica"),
    pytest.param(aio.Inspector, inspector.Inspector, id="Inspector"),
    pytest.param(aio_table_writer.TableWriter, table_writer.TableWriter, id="TableWriter"),
    pytest.param(aio_iterator.Reader, iterator.Reader, id="Reader"),
]

# How objects begin and end is what differs: a constructor cannot await.
EXCEPTIONS = {"open", "__init__", "__aenter__", "__aexit__", "__enter__", "__exit__"}
TWINS = {"__aiter__": "__iter__", "__anext__": "__next__"}


def public(face: type) -> dict[str, Any]:
    """Return a class's public members by name, special methods included."""
    found = {}
    for name in dir(face):
        is_special = name.startswith("__") and name.endswith("__")
        inherited = getattr(object, name, None)
        member = inspect.getattr_static(face, name)
        if is_special and (not inspect.isfunction(member) or member is inherited):
            continue
        if is_special and not member.__module__.startswith("broker."):
            continue
        if not name.startswith("_") or is_special:
            found[TWINS.get(name, name)] = member
    return {name: member for name, member in found.items() if name not in EXCEPTIONS}


def parameters(member: Any) -> list[tuple[str, Any, Any, Any]]:
    """Return what a method takes."""
    return [
        (one.name, one.kind, one.default, one.annotation)
        for one in inspect.signature(member).parameters.values()
    ]


def promise(member: Any) -> str:
    """Return a docstring without the words that tell asyncio from threads."""
    text = inspect.getdoc(member) or ""
    text = re.sub(r"\ban (?:async )?iterator", "an iterator", text)
    text = text.replace("StopAsyncIteration", "StopIteration")
    return text.replace("`async for`", "`for`").replace(
        "; `close()`, from any thread,", "; `close()`"
    )


@pytest.mark.parametrize(("asyncio_face", "sync_face"), PAIRS)
def test_both_faces_have_the_same_members(asyncio_face: type, sync_face: type) -> None:
    """No method or property is missing on one side."""
    assert public(asyncio_face).keys() == public(sync_face).keys()
    assert public(sync_face)


@pytest.mark.parametrize(("asyncio_face", "sync_face"), PAIRS)
def test_methods_take_the_same_arguments(asyncio_face: type, sync_face: type) -> None:
    """Names, kinds, defaults and types of parameters, and what is returned."""
    other = public(sync_face)
    for name, member in public(asyncio_face).items():
        assert isinstance(member, property) == isinstance(other[name], property), name
        if not isinstance(member, property):
            assert parameters(member) == parameters(other[name]), name
            results = [inspect.signature(one).return_annotation for one in (member, other[name])]
            assert results[0] == results[1] or name in {"set", "__iter__"}, name


@pytest.mark.parametrize(("asyncio_face", "sync_face"), PAIRS)
def test_methods_make_the_same_promises(asyncio_face: type, sync_face: type) -> None:
    """Docstrings are equal but for the words that tell asyncio from threads."""
    other = public(sync_face)
    for name, member in public(asyncio_face).items():
        assert promise(member), name
        assert promise(member) == promise(other[name]), name


@pytest.mark.parametrize(("asyncio_face", "sync_face"), PAIRS[:3])
def test_objects_are_made_with_the_same_arguments(asyncio_face: type, sync_face: type) -> None:
    """The settings of one face are those of the other."""
    assert parameters(asyncio_face.__init__) == parameters(sync_face.__init__)


@pytest.mark.parametrize("module", [aio.producer, aio.replica, producer, replica])
def test_what_only_the_engine_needs_is_private(module: Any) -> None:
    """An object of a face has no public attribute beside its documented members."""
    source = inspect.getsource(module)
    assert not re.findall(r"self\.(?!_)\w+ =", source)
