"""Both faces promise the same: each public method of one is found on the other, word for word."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from types import ModuleType
from typing import Any

import pytest

from broker import aio, sync
from broker.core.fast_path import PythonSetter
from broker.speedups import native
from tests.extension import compiled

# What only one side needs: the asyncio face runs on the loop of its caller.
ONE_SIDED = {"LoopThread"}


def modules_of(package: ModuleType) -> list[ModuleType]:
    """Return the modules of a face."""
    names = [found.name for found in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def own(module: ModuleType) -> dict[str, Any]:
    """Return the functions and classes that a module defines."""
    named = vars(module).items()
    return {n: one for n, one in named if getattr(one, "__module__", "") == module.__name__}


def classes_of(package: ModuleType) -> dict[str, type]:
    """Return the public classes of a face by name."""
    found = {}
    for module in modules_of(package):
        for name, one in own(module).items():
            if inspect.isclass(one) and name not in ONE_SIDED:
                assert name not in found, name
                found[name] = one
    return found


PAIRS = [
    pytest.param(one, classes_of(sync)[name], id=name)
    for name, one in classes_of(aio).items()
    if name in classes_of(sync)
]

# How objects begin and end is what differs: a constructor cannot await.
EXCEPTIONS = {"open", "aclose", "__init__", "__aenter__", "__aexit__", "__enter__", "__exit__"}
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
        if native is not None and member is native.Setter.set:
            member = PythonSetter.set  # C has no annotations
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
    text = re.sub(r"\b([Aa]n) async iterator", r"\1 iterator", text)
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
    """Docstrings are equal except for the words that differ between asyncio and threads."""
    other = public(sync_face)
    for name, member in public(asyncio_face).items():
        assert promise(member), name
        assert promise(member) == promise(other[name]), name


@pytest.mark.parametrize(("asyncio_face", "sync_face"), PAIRS)
def test_objects_are_made_with_the_same_arguments(asyncio_face: type, sync_face: type) -> None:
    """The settings of one face are those of the other, which may be given its thread too."""
    given = [one for one in parameters(sync_face.__init__) if one[0] != "thread"]
    assert parameters(asyncio_face.__init__) == given


def sections(face: type) -> tuple[str, dict[str, str]]:
    """Return the first sentence of a class's docstring, and its sections of arguments."""
    text = f"{promise(face)}\n"
    found = re.findall(r"^(Args|Attributes|Raises):\n((?: .*\n?)+)", text, re.MULTILINE)
    return text.partition(". ")[0].partition(".\n")[0].replace(
        "a task of its own", "a thread of its own"
    ), dict(found)


@pytest.mark.parametrize(("asyncio_face", "sync_face"), PAIRS)
def test_classes_make_the_same_promises(asyncio_face: type, sync_face: type) -> None:
    """The first sentence, the arguments and the errors of a constructor.

    The sync face may refer to the other one for the arguments; its constructor also connects, and
    raises what that raises.
    """
    (first, stated), (sync_first, sync_stated) = sections(asyncio_face), sections(sync_face)
    assert first == sync_first
    assert set(stated.get("Raises", "").splitlines()) <= set(
        sync_stated.get("Raises", "").splitlines()
    )
    reference = f"the arguments of `broker.aio.{asyncio_face.__name__}`"
    if reference not in " ".join((sync_face.__doc__ or "").split()):
        arguments = re.sub(r"^ +thread: .*\n", "", sync_stated.get("Args", ""), flags=re.MULTILINE)
        assert stated.get("Args", "") == arguments


def test_every_class_of_a_face_has_a_twin() -> None:
    """Modules and public classes are the same on both sides."""
    assert classes_of(aio).keys() == classes_of(sync).keys()
    names = [{one.__name__.rpartition(".")[2] for one in modules_of(face)} for face in (aio, sync)]
    assert names[1] - names[0] == {"loop_thread"}
    assert not names[0] - names[1]


def attributes(face: type) -> set[str]:
    """Return the names that a class and its bases of this project assign to `self`."""
    found = set()
    for base in face.__mro__:
        # Not those in C, whose members are their twins'.
        if base.__module__.startswith("broker.") and base.__module__ != "broker.speedups._native":
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            found |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            }
    return found


def test_the_set_in_c_takes_and_promises_what_its_twin_does() -> None:
    """For `help()`, and for callers by name."""
    found = compiled().Setter.set
    assert [*inspect.signature(found).parameters] == [
        one[0] for one in parameters(PythonSetter.set)
    ]
    assert inspect.getdoc(found) == inspect.getdoc(PythonSetter.set)


@pytest.mark.parametrize("face", [*classes_of(aio).values(), *classes_of(sync).values()])
def test_what_only_the_engine_needs_is_private(face: type) -> None:
    """An object of a face has no public attribute beside its documented members."""
    assert attributes(face)
    assert not {name for name in attributes(face) if not name.startswith("_")}


@pytest.mark.parametrize("module", [*modules_of(aio), *modules_of(sync)], ids=lambda m: m.__name__)
def test_other_functions_and_classes_of_a_face_are_private(module: ModuleType) -> None:
    """A module of a face defines nothing public but its documented class."""
    named = {name: one for name, one in own(module).items() if not name.startswith("_")}
    assert all(inspect.isclass(one) or name == "T" for name, one in named.items())
    assert len([one for one in named.values() if inspect.isclass(one)]) == 1
