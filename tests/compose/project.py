"""A running compose project: its containers by service, and ways to inject faults."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from typing import Any

from broker.testing.waiting import eventually

RUN_SECONDS = 30
RECOVERY_SECONDS = 60.0
# Every process of a container but the first, which is the init process and ends with its child.
KILL_ALL = ["sh", "-c", "kill -9 -1"]
STOP_ALL = ["sh", "-c", "kill -STOP -1"]


def docker(*arguments: str, timeout: float = 60.0) -> str:
    """Run the docker client, and return what it printed.

    Raises:
        AssertionError: it failed; with what it said.
    """
    ran = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)  # noqa: PLW1510, S607
    assert ran.returncode == 0, f"docker {' '.join(arguments)}: {ran.stderr or ran.stdout}"
    return ran.stdout


# Each question starts a process in a container.
until = partial(eventually, pause=0.2)


class Container:
    """One container of the project."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._plug: list[str] = []

    def inspect(self) -> dict[str, Any]:
        """Return what the engine knows of it."""
        found: list[dict[str, Any]] = json.loads(docker("inspect", self.identity))
        return found[0]

    @property
    def name(self) -> str:
        """Its readable name."""
        return str(self.inspect()["Name"]).lstrip("/")

    @property
    def lives(self) -> tuple[bool, str]:
        """Whether it runs, and when its present run started."""
        state = self.inspect()["State"]
        return bool(state["Running"]), str(state["StartedAt"])

    @property
    def has_ended_well(self) -> bool:
        """Whether its program came to its end."""
        state = self.inspect()["State"]
        return state["Status"] == "exited" and state["ExitCode"] == 0

    @property
    def check(self) -> list[str]:
        """The command with which the engine checks its health."""
        kind, *words = self.inspect()["Config"]["Healthcheck"]["Test"]
        return ["sh", "-c", *words] if kind == "CMD-SHELL" else words

    def is_healthy(self) -> bool:
        """Run the check of its health now, and return whether it passes; False if it is down."""
        return self.passes(*self.check)

    def passes(self, *command: str) -> bool:
        """Run a command in it, and return whether it succeeds; False if it is down."""
        return self.run(*command).returncode == 0

    def logs(self, lines: int = 40) -> str:
        """Return the end of what it printed."""
        ran = subprocess.run(  # noqa: PLW1510 - the log is all there is to say
            ["docker", "logs", "--tail", str(lines), self.identity],  # noqa: S607
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return ran.stdout

    def run(self, *command: str, seconds: int = RUN_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command in it, and return how that went; status 124 where it took too long."""
        words = ["docker", "exec", self.identity, "timeout", str(seconds), *command]
        return subprocess.run(words, capture_output=True, text=True)  # noqa: PLW1510 - the caller looks

    def crash(self) -> None:
        """SIGKILL its program, as in a crash; only the engine restarts it."""
        self.run(*KILL_ALL)

    def crash_and_return(self) -> None:
        """Crash it, and wait until the engine has started it again."""
        before = self.lives
        self.crash()
        until(
            lambda: self.lives[0] and self.lives != before,
            RECOVERY_SECONDS,
            lambda: f"{self.name} was not started again:\n{self.logs()}",
        )

    def hang(self) -> None:
        """Stop its program without an end; the container stays up, until `kill`."""
        # Not by `run`: its `timeout` would stop too.
        docker("exec", self.identity, *STOP_ALL)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        docker("stop", self.identity)

    def kill(self) -> None:
        """SIGKILL it from outside; it is then away until `start`."""
        docker("kill", self.identity)

    def restart(self) -> None:
        """Ask it to end, and start it again."""
        docker("restart", self.identity)

    def start(self) -> None:
        """Start it again."""
        docker("start", self.identity)

    def disconnect(self) -> None:
        """Disconnect it from its network."""
        found = self.inspect()
        ((network, facts),) = found["NetworkSettings"]["Networks"].items()
        # The address only where it is its own for ever.
        address = (facts["IPAMConfig"] or {}).get("IPv4Address")
        alias = found["Config"]["Labels"]["com.docker.compose.service"]
        self._plug = ["--alias", alias, *(["--ip", address] if address else []), network]
        docker("network", "disconnect", network, self.identity)

    def connect(self) -> None:
        """Connect it again, under its former name."""
        docker("network", "connect", *self._plug, self.identity)


class Project:
    """All containers of one profile."""

    def __init__(self, name: str) -> None:
        self.name = name

    def of(self, service: str) -> list[Container]:
        """Return the containers of a service, in the order of their numbers."""
        reported = docker(
            *("ps", "--all", "--no-trunc", "--format", "{{.Names}} {{.ID}}"),
            *("--filter", f"label=com.docker.compose.project={self.name}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        )
        lines = sorted(line.split() for line in reported.splitlines())
        return [Container(identity) for _, identity in lines]

    def one(self, service: str) -> Container:
        """Return the first container of a service."""
        return self.of(service)[0]
