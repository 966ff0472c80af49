"""Close what was forgotten: an object of the asyncio face that is collected without `close()`.

A finalizer runs wherever the garbage collector happens to, so it only asks the loop to close it.
"""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from broker.runtime.tasks import run_detached


def close_when_forgotten(
    owner: object, name: str, close: Callable[[], Coroutine[Any, Any, object]]
) -> weakref.finalize[..., object]:
    """Have an open object closed on this loop once nothing refers to it.

    Args:
        owner: the object; not kept alive by this.
        name: for the warning.
        close: closes its engine; may not fail.

    Returns:
        What to `detach()` when it is closed properly.
    """
    finalizer = weakref.finalize(owner, _close_soon, asyncio.get_running_loop(), name, close)
    finalizer.atexit = False
    return finalizer


def _close_soon(
    loop: asyncio.AbstractEventLoop, name: str, close: Callable[[], Coroutine[Any, Any, object]]
) -> None:
    # What a loop opened that has ended is closed already.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(lambda: run_detached(close()))
        warnings.warn(
            f"{name} was not closed; use `async with`, or call close()",
            ResourceWarning,
            stacklevel=2,
        )
