"""The process of one role: `python -m scripts.benchmarks.role MODULE write|read PLACE`."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys

from scripts.benchmarks.link import Link, Place


def main(module: str, role: str, place: str) -> None:
    """Play a role to its end.

    Args:
        module: the contender's.
        role: the function in it.
        place: the fields of a `Place` as JSON.
    """
    play = getattr(importlib.import_module(module), role)
    done = play(Place(**json.loads(place)), Link())
    if inspect.iscoroutine(done):
        asyncio.run(done)


if __name__ == "__main__":
    main(*sys.argv[1:])
