"""Methods that run one at a time, and that know when their own thread enters again.

A signal handler, or a finalizer that the garbage collector calls, may interrupt a method at any
point, and call another one of the same object on the same thread, or raise. A plain lock would wait
for ever, and a reentrant one would let it see half of a change. Here such a call is recognised: a
write is put off until the interrupted method is over, everything else raises at once.

The order of the two steps, lock and mark, leaves no gap: whoever interrupts in between finds
either no mark, and then nothing has been changed yet, or the mark.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from broker.errors import BrokerError, BufferFullError, ReentrantError

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Exclusive")

MAX_PUT_OFF: Final = 1000


class Exclusive:
    """An object with methods that run one at a time: those decorated with `exclusive`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_entered = False
        self._put_off: deque[Callable[[], object]] = deque()

    @property
    def is_interrupted(self) -> bool:
        """Whether the caller interrupted a method on this thread, and so cannot wait for it."""
        # `threading.Condition` asks its lock the same.
        return self._is_entered and self._lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001

    def check_not_interrupted(self) -> None:
        """Return if the caller may wait for this object.

        Raises:
            ReentrantError: it interrupted a method on this thread.
        """
        if self.is_interrupted:
            raise reentrant_error()

    def put_off(self, write: Callable[[], object]) -> None:
        """Have a write done when the interrupted method is over.

        Raises:
            BufferFullError: `MAX_PUT_OFF` writes wait.
        """
        if len(self._put_off) >= MAX_PUT_OFF:
            raise BufferFullError(
                f"{MAX_PUT_OFF} writes of a signal handler wait for the call that it interrupted"
            )
        self._put_off.append(write)

    def mend(self) -> None:
        """Make the object consistent again after a method that was left at an unknown point."""
        raise NotImplementedError

    def do_put_off(self) -> None:
        """Do the writes that were put off; they may not raise."""
        while True:
            try:
                write = self._put_off.popleft()
            except IndexError:
                return
            write()


def reentrant_error() -> ReentrantError:
    """Return the error of a call that cannot wait for the one that it interrupted."""
    return ReentrantError(
        "this call interrupted another one of the same producer on the same thread, as a signal "
        "handler does, and cannot wait for it; set a flag in the handler, and act on it in the "
        "program"
    )


def exclusive(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Decorate a method that runs alone; it raises `ReentrantError` where it cannot wait.

    Its arguments are positional: keywords would cost time in each `add`.
    """

    @wraps(method)
    def run(self: S, *args: Any) -> T:
        with self._lock:
            # The lock is held, so whoever entered is interrupted.
            if self._is_entered:
                raise reentrant_error()
            try:
                self._is_entered = True
                result = method(self, *args)  # type: ignore[call-arg]
            except BrokerError:
                raise
            except BaseException:
                # Of a signal handler (SystemExit, KeyboardInterrupt), at any point of the method.
                self.mend()
                raise
            finally:
                self._is_entered = False
                if self._put_off:
                    self.do_put_off()
        return result

    return cast("Callable[Concatenate[S, P], T]", run)
