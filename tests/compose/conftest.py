"""Fixtures of the compose tests: an engine or the reason for its absence, and each profile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_docker.plugin import get_docker_services

from broker.testing.server import free_port
from tests.compose.engine import compose_command
from tests.compose.harness import Harness
from tests.compose.project import Project, until

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: they need an engine and time."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    """Give Compose 2, or 1.29 where there is no other; skip where no engine answers."""
    return compose_command()


@pytest.fixture(scope="session")
def docker_compose_file() -> list[str]:
    """Give the project's file, and what is tested with beside it."""
    return [str(ROOT / "docker-compose.yml"), str(ROOT / "tests" / "compose" / "harness.yml")]


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    """Give a name that tells whose containers these are."""
    return f"statebroker-test-{os.getpid()}"


@pytest.fixture(scope="module")
def harness(
    request: pytest.FixtureRequest,
    docker_compose_command: str,
    docker_compose_file: list[str],
    docker_compose_project_name: str,
) -> Iterator[Harness]:
    """Give the profile that the module names, running, with everybody live.

    The module says `PROFILE`, its `URL` and `NETWORK`, how many `SHARDS` it has, a `WORKER`, the
    service in whose containers the command line is run, and the `SPEED` of the flights: so that the
    month ends when the profile has been broken, or a little later.
    """
    module: Any = request.module
    with (
        tempfile.TemporaryDirectory(prefix="statebroker-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        environment = {
            "COMPOSE_PROFILES": module.PROFILE,
            "STATEBROKER_SHARDS": str(module.SHARDS),
            "FLIGHTS_SPEED": str(module.SPEED),
            "REDIS_PORT": str(free_port()),
            "HARNESS_URL": module.URL,
            "HARNESS_NETWORK": module.NETWORK,
            "HARNESS_USER": str(os.getuid()),
            "HARNESS_FOLDER": folder,
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        with get_docker_services(
            docker_compose_command,
            docker_compose_file,
            docker_compose_project_name,
            # Not by its setup: where that fails it leaves the containers behind.
            docker_setup=[],
            docker_cleanup=["down --volumes --remove-orphans --timeout 5"],
        ) as services:
            services._docker_compose.execute("up --build --detach")
            running = Harness(Project(docker_compose_project_name), Path(folder), module.WORKER)
            until(running.is_well, START_SECONDS, running.reported)
            yield running
