"""Refuse gevent and eventlet where they replaced threads by greenlets."""

from __future__ import annotations

import sys
from typing import Final

from broker.errors import BrokerError

_PATCHED: Final = ("threading", "queue", "select", "socket")


def refuse_greenlets(what: str) -> None:
    """Return if threads, and what an event loop waits with, are those of Python.

    An event loop that waits in a greenlet stops all of them, so that the second object would wait
    for ever.

    Args:
        what: the object that needs a thread, for the error text.

    Raises:
        BrokerError: gevent or eventlet replaced them.
    """
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if gevent is not None and any(map(gevent.is_module_patched, _PATCHED)):
        culprit = "gevent's monkey.patch_all()"
    elif eventlet is not None and any(map(eventlet.is_monkey_patched, ("thread", "select"))):
        culprit = "eventlet's monkey_patch()"
    else:
        return
    raise BrokerError(
        f"{what} needs a real thread with an event loop, and {culprit} replaced these by "
        "greenlets; run it in a process without that, for example gunicorn with -k gthread, or use "
        "broker.aio"
    )
