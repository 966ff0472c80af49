"""The deployments that every conformance test runs on, each started once, at its first use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from broker.testing.server import KINDS, REDIS, REDIS_8, VALKEY, find_binary
from tests.conformance.composed import Composed
from tests.conformance.deployments import (
    BehindSentinels,
    Clustered,
    Deployment,
    NewDirectory,
    Single,
)

MAKERS: dict[str, Callable[[NewDirectory], Deployment]] = {
    "valkey": lambda directory: Single(VALKEY, directory),
    "redis": lambda directory: Single(REDIS, directory),
    "redis-8": lambda directory: Single(REDIS_8, directory),
    "sentinel": lambda directory: BehindSentinels(_installed(), directory),
    "cluster": lambda directory: Clustered(_installed(), directory),
    "valkey-sentinel": lambda directory: BehindSentinels(VALKEY, directory),
    "valkey-cluster": lambda directory: Clustered(VALKEY, directory),
    "redis-8-sentinel": lambda directory: BehindSentinels(REDIS_8, directory),
    "redis-8-cluster": lambda directory: Clustered(REDIS_8, directory),
    "compose": lambda _: Composed(),
}

SLOW = ("valkey-sentinel", "valkey-cluster", "redis-8-sentinel", "redis-8-cluster")

# The kind of server without which there is no such deployment.
NEEDS = {name: kind for kind in KINDS for name in (kind, f"{kind}-sentinel", f"{kind}-cluster")}

# Where each process comes with the rights of its role, and no others.
WITH_ROLES = ("redis", "redis-8", "cluster", "redis-8-cluster")


def _installed() -> str:
    """Return the kind of the installed server; the bundled one where there is none."""
    return VALKEY if isinstance(find_binary(REDIS), str) else REDIS


@pytest.fixture(scope="session")
def running() -> Iterator[Callable[[str], Deployment]]:
    """Give the deployment of a name, started if it was not."""
    found: dict[str, Deployment] = {}
    with ExitStack() as stack:

        def new_directory() -> Path:
            # Not tmp_path: a socket's path may have about 100 bytes.
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-"))
            return Path(name) / "data"

        def directory() -> Path:
            path = new_directory()
            path.mkdir()
            return path

        def get(name: str) -> Deployment:
            if name not in found:
                deployment = MAKERS[name](directory)
                stack.callback(deployment.stop)
                deployment.start()
                found[name] = deployment
            return found[name]

        yield get


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of one deployment after the other: few processes then start the same one."""
    places = [n for n, item in enumerate(items) if item.path.is_relative_to(Path(__file__).parent)]
    ordered = sorted((items[n] for n in places), key=_deployment_of)
    for n, item in zip(places, ordered, strict=True):
        items[n] = item


def _deployment_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("deployment", "")) if callspec else ""


def _marks(name: str) -> list[pytest.MarkDecorator]:
    if name == "compose":
        return [pytest.mark.docker]
    # What all kinds do alike is seen with the installed one.
    return [pytest.mark.slow] if name in SLOW else []


@pytest.fixture(params=[pytest.param(name, marks=_marks(name)) for name in MAKERS])
def deployment(
    request: pytest.FixtureRequest, running: Callable[[str], Deployment], namespace: str
) -> Iterator[Deployment]:
    """Return each deployment, intact; killed servers are started again after the test.

    On some every process has the rights of its role alone: see `Deployment.way`.
    """
    name: str = request.param
    if name in NEEDS and isinstance(reason := find_binary(NEEDS[name]), str):
        pytest.skip(reason)
    deployment = running(name)
    with deployment.with_roles(namespace) if name in WITH_ROLES else nullcontext():
        yield deployment
        deployment.heal()


@pytest.fixture
def with_slots(deployment: Deployment) -> Deployment:
    """Return the deployments whose slots can be moved."""
    if not deployment.has_slots:
        pytest.skip("no slots to move")
    return deployment
