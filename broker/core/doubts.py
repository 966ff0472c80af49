"""Why a shard whose data flows may not be right, or may not stay live. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from broker.config import unfit
from broker.core.content import Content
from broker.protocol.digest import RANGES
from broker.protocol.messages import Batch, Head, Heartbeat

RARE_HEARTBEATS: Final = 2  # in a row: a single one may be a worker that was away
UNDECIDED_IN_DOUBT: Final = 3  # self-checks in a row
SHOWN_DAMAGED: Final = 5


class Doubts:
    """What is known against a shard, and the texts about it for people.

    Args:
        shard: number of the shard.
        staleness_bound: seconds without proof after which the shard is no longer live.

    Attributes:
        server_fault: what is wrong with the server; empty if nothing is.
        settings_faults: which settings of the workers do not fit the staleness bound.
    """

    def __init__(self, shard: int, staleness_bound: float) -> None:
        self._shard = shard
        self._staleness_bound = staleness_bound
        self.server_fault = ""
        self.settings_faults: tuple[str, ...] = ()
        self._told_at_ms = 0
        self._rare_heartbeats = 0
        self._heartbeats_apart = 0.0
        self._undecided = 0
        self._undecided_reason = ""

    # -- the workers ------------------------------------------------------------------------------

    def note_rhythm(self, packet: Batch | Heartbeat) -> None:
        """Note when a packet was published."""
        apart, self._told_at_ms = packet.time_ms - self._told_at_ms, packet.time_ms
        if isinstance(packet, Heartbeat) and apart > self._staleness_bound * 1000:
            self._rare_heartbeats += apart < packet.time_ms
            self._heartbeats_apart = apart / 1000
        else:
            self._rare_heartbeats = 0

    @property
    def rhythm_fault(self) -> str:
        """Why heartbeats cannot keep the shard live; empty if they can."""
        if self._rare_heartbeats < RARE_HEARTBEATS:
            return ""
        return (
            f"heartbeats come every {self._heartbeats_apart:.1f} s, which is rarer than the "
            f"staleness bound of {self._staleness_bound:g} s; set heartbeat_interval of the flush "
            "workers to at most half of staleness_bound, or raise staleness_bound"
        )

    def note_settings(self, head: Head) -> None:
        """Note the settings that the workers left in the head."""
        found = unfit(head.heartbeat_s, head.max_age_s, self._staleness_bound)
        self.settings_faults = tuple(map(str, found))

    # -- self-checks ------------------------------------------------------------------------------

    def note_decided(self) -> None:
        """Note a self-check that finished comparing."""
        self._undecided = 0

    def note_undecided(self, reason: str) -> None:
        """Note a self-check that could not be finished."""
        self._undecided += 1
        self._undecided_reason = reason

    # -- for people -------------------------------------------------------------------------------

    def texts(self, content: Content) -> Iterator[str]:
        """Yield one sentence for each doubt about the visible content."""
        yield from filter(None, (self.server_fault, self.rhythm_fault))
        # A copy: another thread may apply a batch.
        if damaged := frozenset(content.damaged):
            shown = ", ".join(map(ascii, sorted(damaged)[:SHOWN_DAMAGED]))
            yield (
                f"degraded: the full state of shard {self._shard} has {len(damaged)} keys whose "
                f"field cannot be read, so this replica lacks them ({shown}); write them again, "
                "then run `statebroker verify --accept`"
            )
        if content.altered:
            yield (
                f"in doubt: keys in {len(content.altered)} of {RANGES} key ranges of shard "
                f"{self._shard} may be missing or wrong, for the full state there is not what "
                "schedulers wrote: somebody else changed it, or Redis lost it; `statebroker "
                "verify` shows the keys; write what is wrong again, then run `statebroker verify "
                "--accept`"
            )
        if (tables := content.tables) is not None and (lacking := dict(tables.damaged)):
            key, fault = next(iter(lacking.items()))
            yield (
                f"degraded: the full state of shard {self._shard} has {len(lacking)} tables of "
                "which a part cannot be read, so this replica does not show them (table "
                f"{key.name} ({key.kind}): {fault}); a scheduler that still has them writes them "
                "again within a minute; if none does, run `statebroker verify --accept` and start "
                "the producers of these tables again"
            )
        if content.doubted_tables:
            shown = "; ".join(content.doubted_tables[:SHOWN_DAMAGED])
            yield (
                f"in doubt: the tables in the full state of shard {self._shard} are not what "
                f"schedulers wrote ({shown}); `statebroker verify` shows the rows that differ from "
                "this replica; a scheduler that wrote them writes them again within a minute; if "
                "none does, write them again, then run `statebroker verify --accept`"
            )
        if self._undecided >= UNDECIDED_IN_DOUBT:
            yield (
                f"in doubt: {self._undecided} self-checks of shard {self._shard} in a row could "
                f"not decide ({self._undecided_reason}); run `statebroker verify`"
            )
