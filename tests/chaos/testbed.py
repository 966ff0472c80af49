"""The environment of a chaos run: servers, workers, writers, readers, and the witness."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from time import monotonic

from broker.aio import Inspector
from broker.errors import BackendError, BrokerError
from broker.protocol.names import shard_of
from broker.testing.history import WITNESS, Violation
from broker.testing.journal import Journal, read_journal
from broker.testing.records import Fenced, Final, Record, Seen, ShardPosition, digest_of
from tests.chaos.deployment import Deployment, FailoverDeployment, Single
from tests.chaos.fleet import Member
from tests.chaos.keyspace import SHARDS
from tests.chaos.witness import Witness

COPY_EVERY_S = 1.5
CHECK_EVERY_S = 0.25
SETTLE_TIMEOUT_S = 40.0
POLL_S = 0.1
LOG_BYTES = 8 << 20
PENDING_BYTES = 64 << 20
SETTINGS = {
    "STATEBROKER_GLOBAL_DATA_UPDATE_INTERVAL": "1s",
    # Short, so that replicas that were disconnected need the full state.
    "STATEBROKER_LOG_RETENTION": "2s",
    "STATEBROKER_LOG_BYTES": str(LOG_BYTES),
    # A worker that starts on an emptied server creates the namespace again.
    "STATEBROKER_SHARDS": str(SHARDS),
}


class Testbed:
    """All processes of a run.

    Args:
        folder: for files of this run.
        deployment: running.
        say: prints progress.
    """

    def __init__(
        self,
        folder: Path,
        deployment: Deployment,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.deployment = deployment
        self.say = say
        self.namespace = "chaos"
        self.members: list[Member] = []
        self._twins: list[Member] = []
        self.crashes: list[Violation] = []
        self.journal = Journal(folder / "testbed.journal")
        self.witness = Witness(
            deployment.url,
            self.namespace,
            Journal(folder / "witness.journal"),
            (PENDING_BYTES, LOG_BYTES + (1 << 20)),
        )
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def single(self) -> Single:
        """The deployment, if it is a single server."""
        if not isinstance(self.deployment, Single):
            raise TypeError("this fault is for a single server")
        return self.deployment

    @property
    def with_failover(self) -> FailoverDeployment:
        """The deployment, if it has failover."""
        if not isinstance(self.deployment, FailoverDeployment):
            raise TypeError("this fault is for deployments with failover")
        return self.deployment

    def crashed(self, words: str) -> None:
        """Record and print an event that no fault explains."""
        self.crashes.append(Violation(words, monotonic()))
        self.say(words)

    def lock_of(self, name: str) -> asyncio.Lock:
        """Return the lock that prevents two faults from having the same victim at once."""
        return self._locks[name]

    # -- members ----------------------------------------------------------------------------------

    def worker(self, kind: str, name: str) -> Member:
        """Make a worker process; not started."""
        command = "flush" if kind == "flusher" else "schedule"
        return Member(kind, name, ["workers", command], self.folder, self._environment())

    def _environment(self) -> dict[str, str]:
        return {
            **SETTINGS,
            **self.deployment.environment,
            "STATEBROKER_URL": self.deployment.fleet_url,
            "STATEBROKER_NAMESPACE": self.namespace,
        }

    def add_all(self, *, producers: int, replicas: int, seed: int) -> None:
        """Make and start everything."""
        place = ["--url", self.deployment.fleet_url, "--namespace", self.namespace]
        for number in range(producers):
            name = f"producer-{number}"
            command = self._writer(name, f"{seed}{number}{{life}}", name)
            self.members.append(Member("producer", name, command, self.folder, {}))
        for kind in ("flusher", "scheduler"):
            self.members += [self.worker(kind, f"{kind}-{number}") for number in range(2)]
        for number in range(replicas):
            name = f"replica-{number}"
            # Each start is a new replica.
            command = ["tests.chaos.reader", *place, "--name", f"{number}.{{life}}"]
            command += ["--journal", self._journal_of(f"{name}-{{life}}")]
            self.members.append(Member("replica", name, command, self.folder, {}))
        for member in self.members:
            member.start()

    def _writer(self, node: str, seed: str, journal: str) -> list[str]:
        place = ["--url", self.deployment.fleet_url, "--namespace", self.namespace, "--node", node]
        return [
            "tests.chaos.writer",
            *place,
            "--seed",
            seed,
            "--journal",
            self._journal_of(journal),
        ]

    def twin_of(self, member: Member, seed: int) -> Member:
        """Create another process with the node name of a producer; it ends when it is fenced."""
        name = f"{member.name}-twin-{token_hex(2)}"
        command = [*self._writer(member.name, str(seed), name), "--once"]
        twin = Member("twin", name, command, self.folder, {})
        self._twins.append(twin)
        return twin

    def fencings(self, node: str) -> int:
        """Return how often processes of a node name were fenced so far."""
        return sum(
            isinstance(record, Fenced)
            for path in self.folder.glob(f"{node}*.journal")
            for record in read_journal(path)
        )

    async def begin(self) -> bool:
        """Wait until every replica follows what the producers write; false if it takes too long."""
        return await self._until(lambda: bool(self.witness.heads) and self._are_all_live())

    def _are_all_live(self) -> bool:
        latest = self._latest()
        replicas = [member for member in self.members if member.kind == "replica"]
        return len(latest) == len(replicas) and all(
            seen.status == "live" for seen in latest.values()
        )

    def _journal_of(self, name: str) -> str:
        return str(self.folder / f"{name}.journal")

    def records(self) -> list[Record]:
        """Return everything that was recorded so far."""
        return [
            record
            for path in sorted(self.folder.glob("*.journal"))
            for record in read_journal(path)
        ]

    # -- tasks ------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Report processes that end unexpectedly."""
        while True:
            for member in self.members:
                if member.is_expected and not member.is_running:
                    self.crashed(f"{member.name} ended by itself: {member.last_words()}")
                    member.start()
            await asyncio.sleep(CHECK_EVERY_S)

    async def keep_copies(self) -> None:
        """Put copies of a single server's data aside all the time."""
        server = self.single.server
        while True:
            await asyncio.sleep(COPY_EVERY_S)
            async with self.lock_of("server"):
                await server.copy()

    # -- the end ----------------------------------------------------------------------------------

    async def settle(self) -> list[str]:
        """Stop writing, wait until all is published and applied, and record what each holds.

        Returns:
            What did not come to rest, in words.
        """
        await self.deployment.heal()
        writers = [member for member in self.members if member.kind == "producer"]
        for writer in writers:
            writer.terminate()
        found = [
            f"{writer.name} did not end after it was asked to"
            for writer in writers
            if not await asyncio.to_thread(writer.wait)
        ]
        if not await self._until(self._is_published):
            found.append("accepted deltas were not published, or the full state was not written")
        if not await self._until(self._is_followed):
            found.append(f"not every replica became live at the head: {self._stragglers()}")
        await self._tell_finals()
        readers = [member for member in self.members if member.kind == "replica"]
        for reader in readers:
            reader.terminate()
        for reader in readers:
            await asyncio.to_thread(reader.wait)
        return found

    async def _until(self, condition: Callable[[], object]) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while True:
                    done = condition()
                    if asyncio.iscoroutine(done):
                        with suppress(BackendError):
                            done = await done
                    if done is True:
                        return True
                    await asyncio.sleep(POLL_S)
        return False

    async def _is_published(self) -> bool:
        async with Inspector(self.deployment.url, namespace=self.namespace) as inspector:
            status = await inspector.status()
        return all(
            shard.pending_deltas == 0
            and shard.pending_chunks == 0
            and shard.snapshot_offset == shard.offset
            for shard in status.shards
        )

    def _latest(self) -> dict[str, Seen]:
        latest: dict[str, Seen] = {}
        for member in self.members:
            if member.kind == "replica":
                path = self.folder / f"{member.name}-{member.lives}.journal"
                seen = (
                    [r for r in read_journal(path) if isinstance(r, Seen)] if path.exists() else []
                )
                if seen:
                    latest[member.name] = seen[-1]
        return latest

    def _is_followed(self) -> bool:
        return not self._stragglers()

    def _stragglers(self) -> str:
        heads = tuple(self.witness.heads[shard] for shard in sorted(self.witness.heads))
        latest = self._latest()
        names = [member.name for member in self.members if member.kind == "replica"]
        return ", ".join(
            f"{name} {latest[name].status if name in latest else 'unheard of'}"
            for name in names
            if name not in latest
            or latest[name].status != "live"
            or latest[name].places != heads
            or monotonic() - latest[name].at > 1
        )

    async def _tell_finals(self) -> None:
        try:
            async with Inspector(self.deployment.url, namespace=self.namespace) as inspector:
                state = await inspector.state()
                shards = len((await inspector.status()).shards)
                if shards != SHARDS:
                    self.crashed(f"the namespace was made again with {shards} shards, not {SHARDS}")
                    return
                for shard in range(SHARDS):
                    content, at = await inspector.folded_shard(shard, None)
                    place = ShardPosition(shard, at.epoch, at.offset, at.batch_id)
                    part = {k: v for k, v in state.items() if shard_of(k, SHARDS) == shard}
                    now = monotonic()
                    self.journal.write(Final(now, WITNESS, place, digest_of(content)))
                    self.journal.write(Final(now, "full-state hash", place, digest_of(part)))
        except BrokerError as error:
            self.say(f"the final state cannot be read: {error}")

    def end(self) -> None:
        """Stop every process."""
        for member in [*self.members, *self._twins]:
            member.pause(is_on=False)
            if member.is_running:
                member.kill()
        self.deployment.kill()
