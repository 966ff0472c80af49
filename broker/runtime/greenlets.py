"""Refuse gevent and eventlet where they replaced threads by greenlets."""

from __future__ import annotations

import sys

from broker.errors import BrokerError


def refuse_greenlets(what: str) -> None:
    """Return if `threading` starts real threads.

    An event loop that waits on a greenlet stops all of them, so the second object would wait for
    ever.

    Args:
        what: the object that needs a thread, for the error text.

    Raises:
        BrokerError: gevent or eventlet patched `threading`.
    """
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        culprit, fix = "gevent's monkey.patch_all()", "monkey.patch_all(thread=False)"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        culprit, fix = "eventlet's monkey_patch()", "monkey_patch(thread=False)"
    else:
        return
    raise BrokerError(
        f"{what} needs a real thread, and {culprit} replaced threads by greenlets; use a process "
        f"of its own or workers with threads (gunicorn -k gthread); {fix} is not enough if it "
        "patches sockets or select"
    )
