"""Build the extension whenever the package is installed or a wheel is made: a hook of hatchling.

Without a compiler the package has none, and its twins in Python do the same.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.errors import BaseError, CCompilerError

MODULE = "broker.speedups._native"
FOLDER = "broker/speedups"
# Variables of the environment, set to anything but 0.
LEFT_OUT = "STATEBROKER_NO_EXTENSION"  # make a wheel for every platform
REQUIRED = "STATEBROKER_REQUIRE_EXTENSION"  # fail where it cannot be built


class ExtensionHook(BuildHookInterface[Any]):
    """Compiles beside the source, where an editable installation looks for the extension."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Put the extension into the wheel that is about to be made."""
        if self.target_name != "wheel" or is_set(LEFT_OUT):
            return
        try:
            built = compiled(Path(self.root))
        except (BaseError, CCompilerError, OSError) as error:
            if is_set(REQUIRED):
                raise
            self.app.display_warning(f"{MODULE} was not built, Python does its work: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"/{FOLDER}/{built.name}")


def is_set(variable: str) -> bool:
    """Whether a variable of the environment is neither empty nor 0."""
    return os.environ.get(variable, "0") not in {"", "0"}


def compiled(root: Path) -> Path:
    """Compile the extension of the project in this folder, beside its source; return the file."""
    extension = Extension(MODULE, [str(root / FOLDER / "_native.c")])
    command: Any = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
    with tempfile.TemporaryDirectory() as folder:
        command.build_temp = command.build_lib = folder
        command.ensure_finalized()
        command.run()
        made = Path(command.get_ext_fullpath(MODULE))
        # In one step: a process that runs keeps the file that it has loaded.
        new = root / FOLDER / f".{made.name}"
        shutil.copyfile(made, new)
        return new.replace(root / FOLDER / made.name)
