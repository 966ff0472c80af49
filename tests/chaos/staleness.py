"""How long replicas were behind, by their own samples and those of the witness."""

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
    """How far behind the replicas of a history were.

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
        """(time, lag in seconds) of all samples of live replicas."""
        return [(seen.at, seen.lag) for seen in self._history.of(Seen) if seen.status == LIVE]

    @cached_property
    def not_live(self) -> list[Away]:
        """The periods in which a running replica was not live."""
        found = []
        for samples in self._samples.values():
            for is_live, group in groupby(samples, lambda seen: seen.status == LIVE):
                if not is_live:
                    away = list(group)
                    # Until the next live sample, if there is one.
                    after = bisect_right(samples, away[-1].at, key=lambda seen: seen.at)
                    found.append(Away(away[0].at, samples[min(after, len(samples) - 1)].at))
        return found

    @cached_property
    def unseen(self) -> list[Away]:
        """For each sample behind an earlier head: the time from that head to the sample.

        Heads that the server lost do not count.
        """
        heads = self._heads()
        found = []
        for samples in self._samples.values():
            for shard, line in heads.items():
                found += self._unseen_of(shard, line, samples)
        return found

    def _heads(self) -> dict[int, list[Headed]]:
        """Return the distinct heads of each shard with the time of the first read, oldest first."""
        found: dict[int, list[Headed]] = defaultdict(list)
        for head in self._history.of(Headed):
            line = found[head.place.shard]
            if not line or line[-1].place != head.place:
                line.append(head)
        return found

    def _unseen_of(self, shard: int, heads: list[Headed], samples: list[Seen]) -> list[Away]:
        contains = self._history.lineage.contains
        # The head before its first sample is part of the load.
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
        """The longest time in seconds for which a replica was not live or behind the head."""
        return longest([*self.not_live, *self.unseen])

    @property
    def largest_lag(self) -> float:
        """The largest lag in seconds of a live replica."""
        return max((lag for _, lag in self.lags), default=0.0)


def longest(away: Sequence[Away]) -> float:
    """Return the duration of the longest period in seconds; 0 if there is none."""
    return max((one.seconds for one in away), default=0.0)


def _place_of(seen: Seen, shard: int) -> ShardPosition | None:
    return next((place for place in seen.places if place.shard == shard), None)
