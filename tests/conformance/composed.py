"""The Redis of docker-compose.yml's default profile, as a conformance deployment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from broker.testing.server import free_port
from broker.testing.waiting import eventually
from tests.compose.engine import compose_command
from tests.compose.project import Container, Project, docker
from tests.conformance.deployments import Deployment

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
LOG = "appendonlydir"


@dataclass(frozen=True)
class Published:
    """A server in a container, by its port on this machine."""

    port: int

    @property
    def url(self) -> str:
        """The URL."""
        return f"redis://127.0.0.1:{self.port}/0"


class Composed(Deployment):
    """One container that the engine restarts; writers and readers run outside."""

    def __init__(self) -> None:
        self._compose = compose_command()
        self._project = Project(f"statebroker-conformance-{os.getpid()}")
        self._server = Published(free_port())

    @property
    def url(self) -> str:
        """The URL, by the port that is published on this machine."""
        return self._server.url

    def start(self) -> None:
        """Start Redis alone."""
        self._run("up", "--detach", "redis")
        self._until_it_answers()

    def stop(self) -> None:
        """End it, and forget its data."""
        self._run("down", "--volumes", "--remove-orphans", "--timeout", "5")

    def heal(self) -> None:
        """Wait until the container engine has started it again."""
        self._until_it_answers()

    def servers(self) -> list[Published]:
        """Return the only one."""
        return [self._server]

    def replace_primary(self, namespace: str) -> None:  # noqa: ARG002
        """Restart its container in order."""
        self._container.restart()
        self._until_it_answers()

    def kill_primary(self, namespace: str) -> None:  # noqa: ARG002
        """SIGKILL it; the engine starts it again."""
        self._container.crash_and_return()
        self._until_it_answers()

    @contextmanager
    def forgetting(self, namespace: str) -> Iterator[None]:  # noqa: ARG002
        """Restore the data of before the block."""
        container = self._container
        self._in(container, f"rm -rf copy && cp -a {LOG} copy")
        yield
        container.kill()
        self._in(container, f"rm -rf {LOG} && mv copy {LOG}")
        container.start()
        self._until_it_answers()

    @property
    def _container(self) -> Container:
        return self._project.one("redis")

    def _in(self, container: Container, script: str) -> None:
        """Run a script over its data, whether it runs or not."""
        image = container.inspect()["Config"]["Image"]
        within = ("--rm", "--volumes-from", container.identity, "--entrypoint", "sh")
        docker("run", *within, image, "-c", f"cd /data && {script}")

    def _run(self, *words: str) -> None:
        environment = {
            **os.environ,
            "COMPOSE_PROFILES": "default",
            "COMPOSE_PROJECT_NAME": self._project.name,
            "REDIS_PORT": str(self._server.port),
        }
        command = [*self._compose.split(), *words]
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout.decode()

    def _until_it_answers(self) -> None:
        def answers() -> bool:
            try:
                with redis.Redis.from_url(self.url) as client:
                    # Nothing that was accepted waits for the disk: what is copied is whole.
                    client.config_set("appendfsync", "always")
                    return bool(client.config_set("auto-aof-rewrite-percentage", 0))
            except redis.RedisError:
                return False

        eventually(answers, START_SECONDS, "the container answers")
