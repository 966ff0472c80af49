"""The wheel, built from this checkout and installed alone into a fresh environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.speedups.build import LEFT_OUT, REQUIRED
from broker.testing.server import Server
from tests.extension import compiled

ROOT = Path(__file__).parents[2]
NO_NETWORK = ("name resolution", "NewConnectionError", "ConnectTimeoutError", "ProxyError")

WRITE_AND_LOOK = """
import json, sys
import broker, redis
from broker.protocol.names import ShardKeys

url, namespace = sys.argv[1:]
with broker.Producer(url, namespace=namespace, node="wheel", shards=1) as producer:
    producer.set("greeting", "hello")
    producer.increment("counter", 2)
    producer.flush(timeout=10)
    client = redis.Redis.from_url(url)
    pending = client.llen(ShardKeys.of(namespace, 0, 1).queue) // 2
    client.close()
print(json.dumps({"broker": broker.__file__, "pending": pending}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the wheel of this checkout."""
    where = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(where)]
    done = _run([*command, str(ROOT)])
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = where.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the commands folder of a fresh environment with the wheel and its base dependencies."""
    venv = tmp_path_factory.mktemp("alone") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--retries", "1"]
    done = _run([*pip, str(wheel)])
    if done.returncode and any(sign in done.stderr for sign in NO_NETWORK):
        pytest.skip(f"no network to install the wheel's dependencies: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    return venv / "bin"


def test_wheel_is_complete(wheel: Path) -> None:
    """The wheel carries every file of both packages, the Lua commands too, and the licence."""
    shipped = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT))
        for package in ("broker", "workers")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"broker/PROTOCOL.md", "broker/PROTOCOL.json"} <= expected
    assert {"broker/py.typed", "workers/py.typed"} <= expected
    assert any(name.endswith(".lua") for name in expected)
    assert set() == expected - shipped
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in shipped)


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    """The wheel holds no test, script or demo data."""
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    [metadata] = [top for top in tops if top.endswith(".dist-info")]
    assert {"broker", "workers", metadata} == tops


def built(where: Path, **environment: str) -> tuple[int, str, list[str]]:
    """Build a wheel; return the status, its name, and its files that were compiled."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(where)]
    done = _run([*command, str(ROOT)], environment=environment)
    for wheel in where.glob("*.whl"):
        files = zipfile.ZipFile(wheel).namelist()
        return (
            done.returncode,
            wheel.name,
            [name for name in files if name.endswith((".so", ".pyd"))],
        )
    return done.returncode, done.stdout + done.stderr, []


@pytest.mark.slow
def test_wheel_carries_the_extension(wheel: Path) -> None:
    """Compiled, and the wheel says for which platform."""
    compiled()
    [name] = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".pyd"))]
    assert name == f"broker/speedups/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert not wheel.name.endswith("-none-any.whl")


@pytest.mark.slow
def test_without_a_compiler_a_wheel_has_no_extension(tmp_path: Path) -> None:
    """The one that lies in the checkout from another build is not taken; who needs one is told."""
    status, name, files = built(tmp_path / "without", CC="/nonexistent/cc")
    assert (status, files) == (0, [])
    assert name.endswith("-py3-none-any.whl")
    status, told, _ = built(tmp_path / "required", CC="/nonexistent/cc", **{REQUIRED: "1"})
    assert status != 0
    assert "/nonexistent/cc" in told


@pytest.mark.slow
def test_a_wheel_for_every_platform_can_be_made(tmp_path: Path) -> None:
    """By a variable of the environment."""
    status, name, files = built(tmp_path, **{LEFT_OUT: "1"})
    assert (status, files) == (0, [])
    assert name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_wheel_writes(installed: Path, server: Server, namespace: str, tmp_path: Path) -> None:
    """A producer from the wheel alone runs the wheel's Lua: its deltas are pending in Redis."""
    script = tmp_path / "write_and_look.py"
    script.write_text(WRITE_AND_LOOK)
    done = _run([str(installed / "python"), str(script), server.url, namespace], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)
    assert Path(reported["broker"]).is_relative_to(installed.parent)
    assert 1 <= reported["pending"] <= 2


@pytest.mark.slow
def test_command_names_its_extra(installed: Path, tmp_path: Path) -> None:
    """Without the server extra `statebroker` says in one line what to install."""
    done = _run([str(installed / "statebroker"), "status"], cwd=tmp_path)
    assert done.returncode != 0
    assert "statebroker[server]" in done.stderr
    assert "Traceback" not in done.stderr


def _run(
    command: list[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # Nothing of the checkout may leak into the fresh environment.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= environment or {}
    return subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=110
    )
