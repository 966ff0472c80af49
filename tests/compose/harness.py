"""Observes a profile under faults, and checks the records at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from broker.testing.history import History
from broker.testing.journal import Journal, Tail, read_journal
from broker.testing.records import Appended, Counted, Forgot, Headed, Seen, ShardPosition
from broker.testing.validators import VALIDATORS
from tests.compose.project import RECOVERY_SECONDS, Project, until

WRITERS = ("writer-1", "writer-2")
READERS = ("reader-1", "reader-2")
WITNESS = "witness"
FRESH_SECONDS = 1.0
REPLAY_SECONDS = 150.0
COMPARE_SECONDS = 90
# Deltas of each writer in each shard between two faults, which is a second or two.
BETWEEN = 100
# Deltas of a writer that replication may have had under way: far below what is between two faults.
UNDER_WAY = BETWEEN // 2


class Harness:
    """The recording writers, readers and witness beside the services of a profile.

    Args:
        project: running, harness included.
        folder: gets their journals.
        worker: a service of the profile in whose container `statebroker` can be run.
    """

    def __init__(self, project: Project, folder: Path, worker: str) -> None:
        self.project = project
        self.folder = folder
        self.worker = worker
        self.journal = Journal(folder / "test.journal")
        self.faults: list[tuple[float, str]] = []
        self._tails = {
            name: Tail(folder / f"{name}.journal") for name in (*WRITERS, *READERS, WITNESS)
        }
        self._seen: dict[str, list[Seen]] = {name: [] for name in READERS}
        self._head_of: dict[int, ShardPosition] = {}
        self._accepted: Counter[tuple[str, int]] = Counter()
        self._counted: dict[str, Counted] = {}
        self._why = ""

    def note(self, fault: str, *, forgets: bool = False) -> None:
        """Keep when a fault began, and whether Redis may forget what it had accepted."""
        self.faults.append((monotonic(), fault))
        if forgets:
            self.forgot(fault)

    def forgot(self, why: str) -> None:
        """Record that by now Redis may hold less than it had accepted."""
        self.journal.write(Forgot(monotonic(), why))

    # -- looking ----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what `statebroker status --json` says; {} while it cannot."""
        for container in self.project.of(self.worker):
            ran = container.run("statebroker", "status", "--json")
            if ran.returncode == 0:
                found: dict[str, Any] = json.loads(ran.stdout)
                return found
        return {}

    def is_well(self) -> bool:
        """Return whether data flows, by `statebroker status --check` and by every reader."""
        flows = self.project.one(self.worker).run("statebroker", "status", "--check")
        self._why = flows.stderr + flows.stdout
        return flows.returncode == 0 and not self.stragglers()

    def recovers(self, seconds: float = RECOVERY_SECONDS) -> None:
        """Wait until data flows again and every reader is live and holds what was written since.

        Raises:
            AssertionError: it does not; with what is wrong.
        """
        offsets = self._offsets()
        until(self.is_well, seconds, self.reported)
        until(
            lambda: all(now > then for now, then in zip(self._offsets(), offsets, strict=True)),
            seconds,
            lambda: f"nothing more is published\n{self.reported()}",
        )

    def proves(self) -> None:
        """Have a replica that joins now proved equal to the history, and the full state too."""
        ran = self.project.one(self.worker).run("statebroker", "verify")
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def waits_for_batches(self, count: int) -> None:
        """Wait until so many more batches are published."""
        first = sum(self._offsets())
        until(lambda: sum(self._offsets()) >= first + count, RECOVERY_SECONDS, self.reported)

    def accepts(self, deltas: int) -> None:
        """Wait until Redis has accepted so many more of each writer in each shard."""
        self._look()
        wanted = {place: count + deltas for place, count in self._accepted.items()}

        def is_done() -> bool:
            self._look()
            return all(self._accepted[place] >= count for place, count in wanted.items())

        until(is_done, RECOVERY_SECONDS, lambda: f"not accepted: {wanted}\n{self.reported()}")

    def counters(self) -> dict[str, Mapping[str, int]]:
        """Return each writer's counters, once it knows whether Redis still holds what it accepted.

        It learns that with the next chunk that Redis accepts in a shard.
        """
        self.accepts(1)
        began = monotonic()

        def are_new() -> bool:
            self._look()
            return all(self._counted[name].at > began for name in WRITERS)

        until(are_new, RECOVERY_SECONDS, self.reported)
        return {name: self._counted[name].counters for name in WRITERS}

    def kept_all_since(self, before: Mapping[str, Mapping[str, int]]) -> None:
        """Require that Redis kept what it had accepted but for what replication had under way.

        Args:
            before: what `counters` returned.

        Raises:
            AssertionError: it went back further, or a writer lost something for good.
        """
        after = self.counters()
        for name, counters in after.items():
            grown = {field: count - before[name][field] for field, count in counters.items()}
            assert grown["accepted"] > 0, f"{name} has begun to count anew: {grown}"
            assert grown["lost"] == 0, f"{name}: {grown}"
            assert grown["resent"] <= UNDER_WAY, f"{name}: {grown}"

    def hears_from(self, *nodes: str) -> None:
        """Wait until Redis accepts more of these nodes."""

        def deltas() -> dict[str, int]:
            counts = {node["node"]: node["deltas"] for node in self.status().get("nodes", [])}
            return {name: counts.get(name, 0) for name in nodes}

        before = deltas()
        until(
            lambda: all(now > before[name] for name, now in deltas().items()),
            RECOVERY_SECONDS,
            lambda: f"{nodes}: {before}, then {deltas()}",
        )

    def reported(self) -> str:
        """Describe a profile that does not recover."""
        parts = [self._why, f"not live at the head: {self.stragglers()}"]
        for service in (*WRITERS, *READERS, WITNESS, self.worker):
            parts += [f"--- {one.name}\n{one.logs(15)}" for one in self.project.of(service)]
        return "\n".join(parts)

    def statuses(self, reader: str, since: float) -> set[str]:
        """Return every status that a reader reported since a moment."""
        self._look()
        return {one.status for one in self._seen[reader] if one.at >= since}

    def stragglers(self) -> list[str]:
        """Return the readers that are not live now, with their status."""
        self._look()
        now = monotonic()
        found = []
        for name in READERS:
            last = self._seen[name][-1:]
            if not last or last[0].status != "live" or now - last[0].at > FRESH_SECONDS:
                found.append(f"{name}: {last[0].status if last else 'unheard of'}")
        return found

    def _look(self) -> None:
        """Read new records from the journals of the writers, the readers and the witness."""
        for name, tail in self._tails.items():
            with suppress(FileNotFoundError):
                for record in tail.new():
                    if isinstance(record, Seen):
                        self._seen[name].append(record)
                    elif isinstance(record, Headed):
                        self._head_of[record.place.shard] = record.place
                    elif isinstance(record, Appended) and not record.duplicate:
                        self._accepted[record.node, record.shard] += record.deltas
                    elif isinstance(record, Counted):
                        self._counted[record.node] = record

    def _heads(self) -> tuple[ShardPosition, ...]:
        self._look()
        return tuple(self._head_of[shard] for shard in sorted(self._head_of))

    def _offsets(self) -> list[int]:
        return [head.offset for head in self._heads()]

    # -- the end ----------------------------------------------------------------------------------

    def ends_as_the_file_says(self, producers: Sequence[str]) -> None:
        """Wait until the flights are replayed; compare the state with the file's answer.

        Args:
            producers: the services that replay them.

        Raises:
            AssertionError: they do not end, or the state is another; with the keys.
        """
        ends = [self.project.one(name) for name in producers]
        until(
            lambda: all(one.has_ended_well for one in ends),
            REPLAY_SECONDS,
            lambda: "\n".join(one.logs(5) for one in ends),
        )
        ran = self.project.one(WITNESS).run(
            *("python", "-m", "tests.compose.flights"), seconds=COMPARE_SECONDS
        )
        assert ran.returncode == 0, f"{ran.returncode}: {ran.stdout[-2000:]}{ran.stderr}"

    def settle(self) -> None:
        """Stop writing, wait until all is published, written out and followed; record the finals.

        Raises:
            AssertionError: it does not come to rest.
        """
        for writer in WRITERS:
            self.project.one(writer).stop()
        until(self._is_published, RECOVERY_SECONDS, lambda: f"never at rest: {self.status()}")
        until(self._is_followed, RECOVERY_SECONDS, self.reported)
        for service in (WITNESS, *READERS):
            self.project.one(service).stop()

    def _is_published(self) -> bool:
        found = self.status()
        return bool(found) and all(
            shard["pending_deltas"] == 0 and shard["snapshot_offset"] == shard["offset"]
            for shard in found["shards"]
        )

    def _is_followed(self) -> bool:
        heads = self._heads()
        return not self.stragglers() and all(
            self._seen[name][-1].places == heads for name in READERS
        )

    def violations(self) -> list[str]:
        """Return everything in the records that breaks a promise, with the fault it came after."""
        records = [
            record
            for path in sorted(self.folder.glob("*.journal"))
            for record in read_journal(path)
        ]
        history = History(records)
        found = []
        for promise, validate in VALIDATORS.items():
            for violation in validate(history):
                before = [
                    fault for at, fault in self.faults if violation.at is None or at < violation.at
                ]
                found.append(f"{promise}: {violation} (after: {', '.join(before[-1:])})")
        return found
