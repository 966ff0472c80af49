"""Refuse what others wrote: with a short text, and whatever it makes a decoder raise.

Bytes in Redis may come from any client with write access. A decoder answers them with a value or
with `DecodeError`, never with another exception, for that would end the process that reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from broker.errors import DecodeError

P = ParamSpec("P")
T = TypeVar("T")

MAX_SHOWN_CHARS: Final = 40

_SCALARS: Final = frozenset((bool, int, float, type(None)))


def shown(value: Any) -> str:
    """Return what an error text may say about a decoded value: short, printable, without content.

    Containers are named by their type only: `repr` of a deeply nested one raises RecursionError,
    and that of a large one is large.
    """
    kind = type(value)
    if kind in _SCALARS:
        return repr(value)
    if kind is str or kind is bytes:
        head = ascii(value[:MAX_SHOWN_CHARS])
        return head if len(value) <= MAX_SHOWN_CHARS else f"{head}... ({len(value)} long)"
    return f"a {kind.__name__}"


def refuses(decode: Callable[P, T]) -> Callable[P, T]:
    """Decorate a decoder of others' bytes: whatever it raises becomes `DecodeError`.

    But for `MemoryError`: it says something of this process, not of the bytes. Readers that refused
    for it would refuse what others accept.
    """

    @wraps(decode)
    def decoded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return decode(*args, **kwargs)
        except (DecodeError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the point: whatever it is
            # Without its text, which may show what was decoded.
            raise DecodeError(f"cannot be decoded ({type(error).__name__})") from None

    return decoded
