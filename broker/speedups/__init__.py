"""The optional extension in C: `set`, packing and unpacking of values and chunks, columns.

It is built where there is a compiler when the package is installed, and left out without one:
everything in it has a twin in Python that does the same, and tests compare the two. With
`STATEBROKER_PURE_PYTHON=1` in the environment the twins are used.
"""

from __future__ import annotations

import os
from types import ModuleType

PURE_PYTHON = "STATEBROKER_PURE_PYTHON"  # set to anything but 0: leave the extension out

native: ModuleType | None  # the extension; None: there is none, use the twins
try:
    if os.environ.get(PURE_PYTHON, "0") not in {"", "0"}:
        raise ImportError(PURE_PYTHON)  # noqa: TRY301 - as if it had not been built
    from broker.speedups import _native as built
except ImportError:
    native = None
else:
    native = built
