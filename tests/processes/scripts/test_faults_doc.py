"""docs/faults.md: its example runs as it stands, and its tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker.embedded import attach
from broker.testing.validators import VALIDATORS
from tests.chaos.faults import FAULTS, faults_of

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "faults.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
FIRST_CELLS = " ".join(re.findall(r"^\| (`[^|]*) \|", TEXT, re.MULTILINE))
NAMES = set(re.findall(r"`(\w+)", FIRST_CELLS))


def test_the_example_runs(tmp_path: Path) -> None:
    """The example runs on its own, recovers from a gap, and shows no false `live`."""
    (example,) = EXAMPLES
    with attach(tmp_path / "data", workers_for="fleet") as attachment:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"url = {attachment.url!r}\n{example}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "open True\nopen but stale\n"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_reported(fault: str) -> None:
    """Each fault that a run makes stands in the table."""
    assert fault in NAMES


@pytest.mark.parametrize("validator", VALIDATORS)
def test_every_validator_is_reported(validator: str) -> None:
    """Each validator has a row in its table."""
    assert validator in NAMES


def test_nothing_is_reported_that_does_not_exist() -> None:
    """Every name in the tables of faults and validators exists, and their number is right."""
    switches = {"lose_replies", "lose_requests", "to_server", "to_client", "drop_messages"}
    assert NAMES - switches <= FAULTS.keys() | VALIDATORS.keys()
    assert f"injects {len(faults_of('single'))} kinds of faults" in TEXT
