"""Without the extension: the twins in Python pass the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from broker.speedups import PURE_PYTHON

ROOT = Path(__file__).parents[3]
# Whatever runs another code without the extension.
TESTS = (
    "tests/unit/core/test_buffer.py",
    "tests/unit/core/test_buffer_machine.py",
    "tests/unit/core/test_exclusive.py",
    "tests/unit/protocol/test_golden.py",
    "tests/unit/protocol/test_packed.py",
)


def test_python_alone_passes_the_same_tests() -> None:
    """The variable of the environment leaves the extension out, and nothing else changes."""
    python = [sys.executable, "-c", "from broker.speedups import native; print(native)"]
    environment = os.environ | {PURE_PYTHON: "1"}
    run = partial(subprocess.run, env=environment, cwd=ROOT, capture_output=True, text=True)
    told = run(python, check=True)
    assert told.stdout.strip() == "None"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    done = run(command, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
