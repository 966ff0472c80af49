"""Every public method in every environment of users: it returns, or raises what it may raise.

The methods are found by introspection, so a new one is in the matrix by itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import broker
from broker.testing.server import Server
from tests.processes.conftest import NewProgram, Serve
from tests.processes.runtime.matrix import ENVIRONMENTS

PROGRAM = Path(__file__).with_name("matrix.py")
# Of Python's own kinds, those that a mapping or a wait is documented to raise.
OWN = {"KeyError", "TimeoutError"}
ERRORS = OWN | {
    name
    for name in broker.__all__
    if isinstance(getattr(broker, name), type) and issubclass(getattr(broker, name), Exception)
}
SLOW = {"spawn", "forkserver", "exit", "asyncio, another loop", "strange arguments"}


@pytest.mark.parametrize(
    "environment",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ENVIRONMENTS],
)
def test_no_method_hangs_or_fails_inside(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, environment: str
) -> None:
    """Each cell ends in time, with a result or a documented error; the program ends quietly."""
    serve(valkey.url, namespace)
    command = [sys.executable, "-m", "tests.processes.runtime.matrix", valkey.url, namespace]
    result = start.begin([*command, environment], {}).result(170)
    assert result.code == 0, result.err
    cells = json.loads(result.out)
    assert len(cells) > 40
    bad = {
        call: how
        for call, how in cells.items()
        if how[0] == "hung" or (how[0] == "raised" and how[1] not in ERRORS)
    }
    assert not bad
    assert "Traceback" not in result.err
    assert "never retrieved" not in result.err


@pytest.mark.parametrize("environment", ["fork", "asyncio, fork"])
def test_a_forked_child_reads_nothing_from_what_the_parent_made(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, environment: str
) -> None:
    """Every call but those that tell of the object itself, or end it, raises ForkedError."""
    serve(valkey.url, namespace)
    command = [sys.executable, "-m", "tests.processes.runtime.matrix", valkey.url, namespace]
    cells = json.loads(start.begin([*command, environment], {}).result(170).out)
    allowed = (
        "close",
        "aclose",
        "namespace",
        "node",
        "name",
        "kind",
        "table",
        "status",
        "health",
        "__iter__",
        # They only make a reader, whose first step raises, or end it.
        "changes",
        "statuses",
        "aclose",
    )
    answered = {call for call, how in cells.items() if how[0] == "ok"}
    assert {call for call in answered if call.partition(".")[2] not in allowed} == set()
    assert {how[1] for how in cells.values() if how[0] == "raised"} == {"ForkedError"}
