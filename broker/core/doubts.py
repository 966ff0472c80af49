"""Why the content of a shard that is live may not be right: texts for people. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from broker.protocol.digest import RANGES

UNDECIDED_IN_DOUBT: Final = 3  # self-checks in a row
SHOWN_DAMAGED: Final = 5


def doubts_of(
    shard: int,
    damaged: Collection[str],
    altered: Collection[int],
    undecided: int,
    undecided_reason: str,
) -> Iterator[str]:
    """Yield one sentence for each doubt.

    Args:
        shard: number of the shard.
        damaged: keys that the content lacks, for their fields cannot be read.
        altered: key ranges in which the content is not what schedulers wrote.
        undecided: self-checks in a row that could not decide.
        undecided_reason: of the last one of these.
    """
    if damaged:
        shown = ", ".join(map(ascii, sorted(damaged)[:SHOWN_DAMAGED]))
        yield (
            f"degraded: the full state of shard {shard} has {len(damaged)} keys whose "
            f"field cannot be read, so this replica lacks them ({shown}); write them again, "
            "then run `statebroker verify --accept`"
        )
    if altered:
        yield (
            f"in doubt: keys in {len(altered)} of {RANGES} key ranges of shard {shard} may be "
            "missing or wrong, for the full state there is not what schedulers wrote: somebody "
            "else changed it, or Redis lost it; `statebroker verify` shows the keys; write what "
            "is wrong again, then run `statebroker verify --accept`"
        )
    if undecided >= UNDECIDED_IN_DOUBT:
        yield (
            f"in doubt: {undecided} self-checks of shard {shard} in a row could not "
            f"decide ({undecided_reason}); run `statebroker verify`"
        )
