"""Passwords are read from each source, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from broker import ConfigError, Producer
from broker.backend.urls import has_login, has_password, redacted
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, Run
from tests.processes.programs import (
    START_SECONDS,
    STOP_SECONDS,
    children,
    command_line,
    needs_proc,
)
from workers.cli.secrets import with_password_file

SECRET = "s3cret/w@rd:%20 ü"


@pytest.fixture
def secret_server(own_server: OwnServer) -> Server:
    """Start a server whose password has characters with a meaning in URLs."""
    server = own_server(port=0)
    with redis.Redis.from_url(server.url) as owner:
        owner.execute_command("ACL", "SETUSER", "me", "on", f">{SECRET}", "~*", "&*", "+@all")
        owner.execute_command("ACL", "SETUSER", "default", "off")
    return server


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    """Return a file with the password, as a secret store mounts it."""
    file = tmp_path / "password"
    file.write_text(SECRET + "\nwhat follows is not read\n")
    return str(file)


@needs_proc
def test_a_password_from_a_file_shows_nowhere(
    secret_server: Server, secret_file: str, namespace: str, start: NewProgram, run: Run
) -> None:
    """Workers, helpers and commands log in with it; no command line, log or error has it."""
    url = f"redis://me@127.0.0.1:{secret_server.port}/0"
    place = {"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace}
    ready = start.directory / "is-ready"
    workers = start(
        *("serve", "--password-file", secret_file, "--workers", "2", "--verbose"),
        *("--ready-file", str(ready)),
        **place,
    )
    eventually(ready.exists, START_SECONDS, lambda: workers.err)
    by_environment = place | {"STATEBROKER_PASSWORD_FILE": secret_file}
    wrote = run("set", "a", "1", **by_environment)
    assert (wrote.code, wrote.err) == (0, "")
    (start.directory / "statebroker.toml").write_text(f'password_file = "{secret_file}"\n')
    by_settings = run("get", "a", **place)
    (start.directory / "statebroker.toml").unlink()
    assert (by_settings.out, by_settings.err) == ("1\n", "")
    shown = run("config", "--password-file", secret_file, **place)
    reported = [
        *(command_line(workers.pid), workers.err, workers.out, wrote.out, shown.out, shown.err),
        *(command_line(pid) for pid in children(workers.pid)),
    ]
    assert "me@127.0.0.1" in shown.out
    assert children(workers.pid)
    secret_server.kill()
    eventually(lambda: "cannot reach" in workers.err, START_SECONDS)
    gone = run("get", "a", **by_environment)
    assert gone.code == 1
    reported += [gone.err, workers.err, workers.out]
    assert not [text for text in reported if "s3cret" in text]
    assert workers.stop() < STOP_SECONDS


@pytest.mark.parametrize(
    "option",
    [
        *("redis://me:s3cret@h", "unix://:s3cret@/s", "redis://h?password=s3cret"),
        "redis+sentinel://me@h/fleet?sentinel_password=s3cret",
        "redis+sentinel://h/fleet?sentinel_username=w&sentinel%5Fpassword=s3cret",
    ],
)
def test_a_password_on_the_command_line_is_refused(run: Run, option: str) -> None:
    """A password in an option is refused with one line that names the alternatives."""
    reported = run("get", "a", "--url", option)
    assert (reported.code, len(reported.err.splitlines())) == (2, 1), reported
    assert "s3cret" not in reported.err
    assert "--password-file" in reported.err
    assert "STATEBROKER_URL" in reported.err


@pytest.mark.parametrize(
    ("url", "content", "words"),
    [
        ("redis://me@h", None, ("cannot read the password file", "No such file")),
        ("redis://me@h", b"", ("has no password in its first line",)),
        ("redis://me@h", b"\xfe\xff s3cret", ("cannot read the password file", "not UTF-8")),
        ("redis://me:s3cret@h", b"s3cret", ("use one of them",)),
        ("embedded://data", b"s3cret", ("takes no password",)),
    ],
)
def test_a_password_file_that_is_no_use_is_reported(
    run: Run, tmp_path: Path, url: str, content: bytes | None, words: tuple[str, ...]
) -> None:
    """One line, exit status 2, nothing of what is in the file."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    reported = run("get", "a", STATEBROKER_URL=url, STATEBROKER_PASSWORD_FILE=str(file))
    assert (reported.code, len(reported.err.splitlines())) == (2, 1), reported
    assert all(word in reported.err for word in words), reported.err
    assert "s3cret" not in reported.err


@pytest.mark.parametrize(
    ("url", "has", "shown"),
    [
        ("redis://h", False, "redis://h"),
        ("redis://me@h", False, "redis://me@h"),
        ("redis://:p@h/1", True, "redis://:***@h/1"),
        ("redis://me:p@q@h:1", True, "redis://me:***@h:1"),
        ("rediss://me:p@h?ssl_keyfile=k", True, "rediss://me:***@h"),
        ("unix:///tmp/a@b:c", False, "unix:///tmp/a@b:c"),
        ("unix://me:p@/tmp/s", True, "unix://me:***@/tmp/s"),
        ("redis://h?password=p", True, "redis://h"),
        ("redis+sentinel://me:p@h1:1,h2:2/fleet", True, "redis+sentinel://me:***@h1:1,h2:2/fleet"),
        ("redis://h?password=p:p@q", True, "redis://***"),
        ("redis://me:p?p@h", True, "redis://***"),
        ("redis://h?client_name=password=", False, "redis://h"),
        ("embedded://", False, "embedded://"),
    ],
)
def test_where_a_url_has_its_password(url: str, has: bool, shown: str) -> None:  # noqa: FBT001
    """A password in a URL is found, hidden, and not inserted twice."""
    assert has_password(url) == has
    assert redacted(url) == shown
    if has or url.startswith("embedded"):
        with pytest.raises(ConfigError):
            with_password_file(url, "x")
    else:
        full = with_password_file(url, "a file+1")
        assert has_login(full)
        assert not has_password(full)
        assert full.endswith("/a%20file%2B1")


def test_sentinels_have_a_password_of_their_own(run: Run, tmp_path: Path) -> None:
    """A sentinel password is never shown; that of the data servers may come from a file."""
    url = "redis+sentinel://me@127.0.0.1:1/fleet?sentinel_username=w&sentinel_password=sentinel-s3c"
    assert has_password(url)
    full = with_password_file(url, str(tmp_path / "password"))
    assert full.startswith("redis+sentinel://me@127.0.0.1:1/fleet?")
    assert f"&sentinel_password=sentinel-s3c&password_file={tmp_path}/password" in full
    assert redacted(full) == "redis+sentinel://me@127.0.0.1:1/fleet"
    (tmp_path / "password").write_text("data-s3c")
    place = {"STATEBROKER_URL": url, "STATEBROKER_PASSWORD_FILE": str(tmp_path / "password")}
    shown = run("config", **place)
    assert "redis+sentinel://me@127.0.0.1:1/fleet" in shown.out
    gone = run("get", "a", **place)
    assert (gone.code, "no sentinel of 127.0.0.1:1" in gone.err) == (1, True), gone
    doctor = run("doctor", "--json", **place)
    said = [shown.out, shown.err, gone.out, gone.err, doctor.out, doctor.err]
    assert not [text for text in said if "s3c" in text]


def test_errors_of_the_api_hide_it_too(
    secret_server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a refused password nor a missing server shows it, in no error, cause or log."""
    url = f"redis://me:wrong-s3cret@127.0.0.1:{secret_server.port}/0"
    said = []
    for _ in range(2):
        with pytest.raises(Exception, match="redis://me:") as caught:
            Producer(url, namespace=namespace)
        error: BaseException | None = caught.value
        while error is not None:
            said.append(repr(error))
            error = error.__cause__ or error.__context__
        secret_server.stop()
    assert len(said) > 2
    assert not [text for text in [*said, caplog.text] if "s3cret" in text]
