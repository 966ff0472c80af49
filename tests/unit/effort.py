"""How hard the randomised tests try: `STATEBROKER_TEST_EFFORT=20` tries twenty times the examples.

At effort 1 every run tries the same examples, so that a red build stays red; above, other ones each
time.
"""

from __future__ import annotations

import os
from typing import Final

EFFORT: Final = max(1, int(os.environ.get("STATEBROKER_TEST_EFFORT", "1")))


def examples(at_effort_one: int) -> int:
    """Return how many examples to try."""
    return at_effort_one * EFFORT
