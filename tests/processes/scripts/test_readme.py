"""The README's examples run as they stand, and its tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import Producer
from broker.config import SETTINGS
from broker.embedded import attach
from workers.cli import statebroker

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
COMMANDS = set(re.findall(r"^statebroker (\w+)", SHELL, re.MULTILINE))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """URL of a server on which the namespace `fleet` is served and written to."""
    with attach(tmp_path / "data", workers_for="fleet") as attachment:
        stop = threading.Event()

        def write() -> None:
            with Producer(attachment.url, namespace="fleet") as producer:
                number = 0
                while not stop.wait(0.02):
                    number += 1
                    producer.set("bus/42", number)

        writer = threading.Thread(target=write)
        writer.start()
        yield attachment.url
        stop.set()
        writer.join()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_each_python_example_runs(number: int, served: str) -> None:
    """Copied out of the README and run by itself, each example works and says nothing wrong."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"url = {served!r}\n{EXAMPLES[number]}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_the_ten_line_example_prints_what_it_says() -> None:
    """The first example needs nothing but the package: no server, no worker, no URL."""
    result = subprocess.run(
        [sys.executable, "-c", EXAMPLES[0]],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert result.stdout == "{'lat': 52.52, 'lon': 13.4} 3 live\n"


def test_every_command_in_the_readme_exists() -> None:
    """The shell lines name commands that the command line has."""
    assert COMMANDS
    assert set(statebroker.commands) >= COMMANDS


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_table(name: str) -> None:
    """Each setting stands in the README with its default."""
    row = re.search(rf"^\| `{name}` \| ([^|]+) \|", README, re.MULTILINE)
    assert row is not None, f"{name} is not in the README's table"
    default = SETTINGS[name].default or 0
    shown = float(re.sub(r"[^0-9.]", "", row[1]))
    scale = 1024 if "KiB" in row[1] else 1024**2 if "MiB" in row[1] else 1
    assert shown * scale == default


SCRIPTS = ("scripts/demo", "scripts/test", "scripts/check", "scripts/faults")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_that_it_names_exist(script: str) -> None:
    """The commands that a newcomer is told to run are there and can be run."""
    assert script in README
    assert (ROOT / script).stat().st_mode & 0o111
