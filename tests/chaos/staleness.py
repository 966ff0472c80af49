"""How long replicas were behind, by their own word and by the witness'."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from broker.testing.freshness import LIVE
from broker.testing.history import History
from broker.testing.records import Headed, Seen, ShardPosition


@dataclass(frozen=True, slots=True)
class Away:
    """A replica was not live, or did not show the head.

    Attributes:
        begin: monotonic seconds.
        end: likewise.
    """

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end - self.begin


class Staleness:
    """What a history says about how far behind its replicas were.

    Args:
        history: with samples of replicas and of the head.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._samples: dict[str, list[Seen]] = defaultdict(list)
        for seen in history.of(Seen):
            self._samples[seen.replica].append(seen)

    @cached_property
    def lags(self) -> list[tuple[float, float]]:
        """(when, lag in seconds) that replicas told while they said that they were live."""
        return [(seen.at, seen.lag) for seen in self._history.of(Seen) if seen.status == LIVE]

    @cached_property
    def not_live(self) -> list[Away]:
        """The times for which a running replica said that it was not live."""
        found = []
        for samples in self._samples.values():
            for is_live, group in groupby(samples, lambda seen: seen.status == LIVE):
                if not is_live:
                    away = list(group)
                    # Until the first sample that says otherwise, if there is one.
                    after = bisect_right(samples, away[-1].at, key=lambda seen: seen.at)
                    found.append(Away(away[0].at, samples[min(after, len(samples) - 1)].at))
        return found

    @cached_property
    def unseen(self) -> list[Away]:
        """For each sample that did not show a head read before: from that head's time until then.

        A head that the server forgot need not be shown by anybody.
        """
        heads = self._heads()
        found = []
        for samples in self._samples.values():
            for shard, line in heads.items():
                found += self._unseen_of(shard, line, samples)
        return found

    def _heads(self) -> dict[int, list[Headed]]:
        """Each shard's heads, oldest first, of those that are the same the first."""
        found: dict[int, list[Headed]] = defaultdict(list)
        for head in self._history.of(Headed):
            line = found[head.place.shard]
            if not line or line[-1].place != head.place:
                line.append(head)
        return found

    def _unseen_of(self, shard: int, heads: list[Headed], samples: list[Seen]) -> list[Away]:
        contains = self._history.lineage.contains
        # What was there before its first sample is what it has to load.
        first = bisect_right(heads, samples[0].at, key=lambda head: head.until)
        found = []
        for seen in samples:
            newest = bisect_right(heads, seen.at, key=lambda head: head.until) - 1
            held = _place_of(seen, shard)
            while first <= newest and (
                (held is not None and contains(held, heads[first].place))
                or not contains(heads[newest].place, heads[first].place)
            ):
                first += 1
            if first <= newest:
                found.append(Away(heads[first].until, seen.at))
        return found

    @property
    def longest(self) -> float:
        """Most seconds for which a replica was not live, or did not show the head."""
        return longest([*self.not_live, *self.unseen])

    @property
    def largest_lag(self) -> float:
        """The largest lag in seconds that a replica told while it said that it was live."""
        return max((lag for _, lag in self.lags), default=0.0)


def longest(away: Sequence[Away]) -> float:
    """Return the length of the longest; 0 if there is none."""
    return max((one.seconds for one in away), default=0.0)


def _place_of(seen: Seen, shard: int) -> ShardPosition | None:
    return next((place for place in seen.places if place.shard == shard), None)
