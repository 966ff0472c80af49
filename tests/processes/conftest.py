"""Fixtures of the process tests: programs that are killed at the end of the test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.testing.server import REDIS, VALKEY, Server
from tests.conftest import need
from tests.processes.programs import WORKERS, Program, Result, await_file
from tests.processes.served_namespace import ServedNamespace

Serve = Callable[..., Program]
Run = Callable[..., Result]
NewServed = Callable[..., ServedNamespace]


@pytest.fixture(scope="session", params=(VALKEY, REDIS))
def server(request: pytest.FixtureRequest, shared_servers: Callable[[str], Server]) -> Server:
    """Give a running server of two kinds.

    These tests are long. What Redis 8 does with each command is seen in tests/integration, and with
    the rights of each role in tests/conformance.
    """
    kind: str = request.param
    need(kind)
    return shared_servers(kind)


@pytest.fixture
def valkey(shared_servers: Callable[[str], Server]) -> Server:
    """Give only the bundled server, for tests that do not depend on the kind of server."""
    return shared_servers(VALKEY)


class NewProgram:
    """A factory of programs, killed at the end of the test.

    Attributes:
        directory: where they run, and put their output.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self._made = 0

    def __call__(self, *arguments: str, **settings: str) -> Program:
        """Start `statebroker` with these arguments and environment variables."""
        return self.begin([*WORKERS, *arguments], settings)

    def script(self, text: str, *arguments: str, **settings: str) -> Program:
        """Start a Python program, given as text."""
        # A file, not `-c`: processes started with 'spawn' import it again.
        file = self.directory / f"script{self._made}.py"
        file.write_text(text)
        return self.begin([sys.executable, str(file), *arguments], settings)

    def begin(
        self, command: Sequence[str], settings: Mapping[str, str], *, is_leader: bool = False
    ) -> Program:
        """Start a command; see `Program`."""
        self._made += 1
        name = f"program{self._made}"
        program = Program(command, self.directory, name, settings, is_leader=is_leader)
        self._stack.callback(program.kill_all)
        return program


@pytest.fixture
def start(tmp_path: Path) -> Iterator[NewProgram]:
    """Give a factory of programs: see its `__call__`."""
    with ExitStack() as stack:
        yield NewProgram(tmp_path, stack)


@pytest.fixture
def run(start: NewProgram) -> Run:
    """Return a function that runs `statebroker` to its end, and returns the result."""

    def run_shielded(*arguments: str, **settings: str) -> Result:
        return start(*arguments, **settings).result()

    return run_shielded


@pytest.fixture
def serve(start: NewProgram) -> Serve:
    """Give a function that starts workers and returns once they are ready.

    serve(url, namespace, *options, command="serve", is_leader=False, **settings) -> Program. The
    n-th one's ready file is `ready<n>` in the programs' directory.
    """
    made = 0

    def ready(
        url: str,
        namespace: str,
        *options: str,
        command: str = "serve",
        is_leader: bool = False,
        **settings: str,
    ) -> Program:
        nonlocal made
        made += 1
        file = start.directory / f"ready{made}"
        settings |= {"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace}
        arguments = [*WORKERS, command, "--ready-file", str(file), *options]
        program = start.begin(arguments, settings, is_leader=is_leader)
        await_file(file, program)
        return program

    return ready


@pytest.fixture
def new_served(valkey: Server, namespace: str, serve: Serve, start: NewProgram) -> NewServed:
    """Return a function that starts `serve` with these options, and returns the namespace."""

    def begin(*options: str) -> ServedNamespace:
        return ServedNamespace(valkey.url, namespace, serve(valkey.url, namespace, *options), start)

    return begin
