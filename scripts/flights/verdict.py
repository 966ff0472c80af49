"""The final check of the demo: all copies are equal and correct, and the counts add up."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from scripts.flights.comparison import differences, digest
from scripts.flights.view import Totals

State = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the check; each list of faults is empty if there are none."""

    keys: int
    digest: str
    convergence: list[str] = field(default_factory=list)
    oracle: list[str] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether there is no fault."""
        return not (self.convergence or self.oracle or self.accounts)


def judge(
    full: State,
    folded: State,
    expected: State,
    finals: Mapping[str, Mapping[str, Any]],
    *,
    deltas: int,
    totals: Totals,
    from_start: Collection[str],
) -> Verdict:
    """Compare every replica with the full-state hash, and both with the expected state.

    Args:
        full: the full-state hash, read when nothing is pending and the snapshot is current.
        folded: the same with the log applied.
        expected: the state computed from the file.
        finals: what each replica reported in the end, by its name.
        deltas: number of deltas in all movements.
        totals: what Redis counted.
        from_start: names of the replicas that were live before the first delta.
    """
    verdict = Verdict(len(full), digest(full))
    copies: dict[str, State] = {"full-state hash with the log": folded}
    counts = {"accepted": totals.accepted, "published": totals.published}
    for name, final in finals.items():
        copy = msgpack.unpackb(Path(final["path"]).read_bytes(), timestamp=3)
        copies[f"replica {name}"] = copy
        if digest(copy) != final["digest"]:
            verdict.convergence.append(f"replica {name}: its file differs from its report")
        # One that loaded the full state later has applied only the deltas since.
        if name in from_start and final["stats"]["loads"] <= 1:
            counts[f"applied by replica {name}"] = final["stats"]["deltas_applied"]
    for name, state in copies.items():
        verdict.convergence.extend(labelled(f"{name} against the full-state hash", state, full))
        verdict.oracle.extend(labelled(f"{name} against the file", state, expected))
    verdict.oracle.extend(labelled("full-state hash against the file", full, expected))
    for what, number in counts.items():
        if number != deltas:
            verdict.accounts.append(f"{deltas:,} deltas were written, but {number:,} {what}")
    return verdict


def labelled(label: str, state: State, expected: State) -> list[str]:
    """Return the differences, each prefixed by the label."""
    return [f"{label}: {line}" for line in differences(state, expected)]
