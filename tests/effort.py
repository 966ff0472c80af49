"""How many examples the randomised tests try: `TEST_EFFORT=20` means 20 times as many.

Up to effort 1 every run tries the same examples, so that a red build stays red; above, other ones
each time. `scripts/test --all` has effort 1, `scripts/test` a quarter of it.
"""

from __future__ import annotations

import os
from typing import Final

EFFORT: Final = float(os.environ.get("TEST_EFFORT", "1"))


def examples(at_effort_one: int) -> int:
    """Return how many examples to try."""
    return max(1, round(at_effort_one * EFFORT))
