"""Fixtures of all tests: real servers, and a namespace for each test."""

from __future__ import annotations

import faulthandler
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.testing.server import KINDS, VALKEY, Server, find_binary
from tests.inherited import reset

pytest_plugins = ["tests.leaks", "tests.selection"]
reset()

OwnServer = Callable[..., Server]


@pytest.fixture(autouse=True)
def undisturbed(request: pytest.FixtureRequest) -> None:
    """Let tests that may take longer than others run without a dump of their stack.

    To dump a thread that runs can crash CPython 3.11: it reads frames that change under it. A test
    that hangs waits, so there the dump is safe.
    """
    if request.node.get_closest_marker("timeout") is not None:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[Callable[[str], Server]]:
    """Give the server of a kind that this test process shares; it starts at its first use."""
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def shared(kind: str) -> Server:
            if kind not in running:
                server = Server(kind, _directory(stack))
                stack.callback(server.stop)
                server.start()
                running[kind] = server
            return running[kind]

        yield shared


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest, shared_servers: Callable[[str], Server]) -> Server:
    """Give a running server of each kind that there is.

    It is shared: use `namespace`, and `own_server` to kill, restart or configure one.
    """
    kind: str = request.param
    need(kind)
    return shared_servers(kind)


@pytest.fixture
def namespace() -> str:
    """Give a unique namespace; it separates the tests of a shared server, not FLUSHALL."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """Give a factory of servers that belong to this test alone.

    own_server(*args, kind="valkey", port=None, password=None, directory=None) -> Server, running.

    Args:
        args: settings as on the server's command line, for example "--appendonly", "yes".
        kind: one of `KINDS`; the test is skipped where there is no such server.
        port: a TCP port on 127.0.0.1, 0 for a free one; None for the unix socket alone.
        password: of the default user.
        directory: data directory, kept; None makes one that ends with the test.
    """
    with ExitStack() as stack:

        def own(
            *args: str,
            kind: str = VALKEY,
            port: int | None = None,
            password: str | None = None,
            directory: Path | None = None,
        ) -> Server:
            need(kind)
            where = _directory(stack) if directory is None else directory
            server = Server(kind, where, args, port=port, password=password)
            stack.callback(_end, server)
            server.start()
            return server

        yield own


def need(kind: str) -> None:
    """Skip the test, with the reason, where there is no server of a kind."""
    found = find_binary(kind)
    if isinstance(found, str):
        pytest.skip(found)


def _directory(stack: ExitStack) -> Path:
    # Not tmp_path: a socket's path may have about 100 bytes, and pytest's paths grow with the name.
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-")))


def _end(server: Server) -> None:
    if server.is_running:
        server.kill()
