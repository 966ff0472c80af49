"""The examples of README and docs run as they stand, and their tables are complete."""

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
from workers.cli import HOMES

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text("utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
COMMAND = (ROOT / "docs" / "command.md").read_text("utf-8")
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text("utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")

FIRST_EXAMPLE, *_ = README_EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
EXAMPLES = README_EXAMPLES + re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def commands_in(page: str) -> set[str]:
    """Return the commands of `statebroker` that a page's shell examples run."""
    shell = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    return set(re.findall(r"^statebroker (\w+)", shell, re.MULTILINE))


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
    """Copied from README or guide and run by itself, each example works without a warning."""
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
        [sys.executable, "-c", FIRST_EXAMPLE],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert result.stdout == "{'lat': 52.52, 'lon': 13.4} 3 live\n"


def test_every_command_is_on_its_page() -> None:
    """docs/command.md shows every command, and the README only commands that exist."""
    assert commands_in(COMMAND) == set(HOMES)
    assert commands_in(README)
    assert commands_in(README) <= commands_in(COMMAND)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_table(name: str) -> None:
    """docs/settings.md has each setting with its default."""
    row = re.search(rf"^\| `{name}` \| ([^|]+) \|", SETTINGS_PAGE, re.MULTILINE)
    assert row is not None, f"{name} is not in the table of docs/settings.md"
    default = SETTINGS[name].default or 0
    shown = float(re.sub(r"[^0-9.]", "", row[1]))
    scale = 1024 if "KiB" in row[1] else 1024**2 if "MiB" in row[1] else 1
    assert shown * scale == default


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test"])
def test_the_readme_names_the_two_commands(script: str) -> None:
    """The README has two commands for new users, each alone on its line."""
    assert f"\n    {script}\n" in README


NAMED_SCRIPTS = sorted(set(re.findall(r"`?(scripts/[a-z]+)\b(?!/)", README + CONTRIBUTING)))


@pytest.mark.parametrize("script", NAMED_SCRIPTS)
def test_the_scripts_that_are_named_exist(script: str) -> None:
    """The commands in README and CONTRIBUTING exist and can be run."""
    assert (ROOT / script).is_dir() or (ROOT / script).stat().st_mode & 0o111


def test_the_contributing_page_names_the_scripts_for_contributors() -> None:
    """Checks, tests, mutations, faults and benchmarks are all mentioned."""
    verbs = ("check", "test", "demo", "mutations", "faults", "bench", "scenarios")
    assert {f"scripts/{verb}" for verb in verbs} <= set(NAMED_SCRIPTS)
