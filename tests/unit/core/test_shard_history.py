"""Replicas under any mix of packet loss, reads, and changes of the server's history."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.model import Status
from broker.protocol import codec
from broker.protocol.constants import BULK_BYTES
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from tests.effort import examples
from tests.unit.exactness import exact, read
from tests.unit.model_history import Delta, History, SnapshotRun
from tests.unit.replica_without_io import STALENESS_BOUND, Follower, LoadRead

KEYS = st.sampled_from(["a", "b", "c", "d"])
VALUES = st.sampled_from([0, 1, 2.5, True, "x", [1], (1 << 64) - 1])
AMOUNTS = st.sampled_from([1, -1, 0.5, 7])
DELTAS = st.one_of(
    st.tuples(st.just(OP_INCREMENT), KEYS, AMOUNTS),
    st.tuples(st.just(OP_SET), KEYS, VALUES),
    st.tuples(st.just(OP_DELETE), KEYS, st.none()),
)
CHUNKS = st.lists(DELTAS, min_size=1, max_size=3)
FOLLOWERS = st.integers(0, 1)
PLACES = st.integers(0, 5)
STEPS = st.sampled_from([0, 1, 2, 4, 6, 6])  # a load is 6: head, begin, 3 pages, end
LOST = st.integers(1, 6)
REWRITTEN = st.lists(CHUNKS, max_size=2)


class HistoryMachine(RuleBasedStateMachine):
    """A state machine of writes, snapshots, losses, repeats, cuts, rollbacks and partial reads.

    At every moment each replica's values are those of its position in one history, never a mixture;
    and once the trouble stops, one heartbeat makes it live at the head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.followers = [
            Follower("watched", self.history, watched=True),
            Follower("plain", self.history, watched=False),
        ]
        self.snapshot: SnapshotRun | None = None
        self.newcomers = 0

    @initialize(
        chunks=st.lists(CHUNKS, min_size=2, max_size=4),
        pages=st.integers(0, 2),
        number=FOLLOWERS,
        steps=STEPS,
    )
    def begin(self, chunks: list[list[Delta]], pages: int, number: int, steps: int) -> None:
        """Start with a half-written snapshot, one live replica and one that loads."""
        for chunk in chunks:
            self.write([chunk])
        self.snapshot_fully()
        for chunk in chunks:
            self.write([chunk])
        self.followers[1 - number].subscribe()
        self.read_on(1 - number, min(steps, 3), 1)
        self.snapshot_on(pages, 0.0)
        self.read_on(1 - number, max(steps - 3, 0), 1)
        self.followers[number].settle()

    # -- the server -------------------------------------------------------------------------------

    @rule(
        chunks=st.lists(CHUNKS, min_size=1, max_size=3),
        broken=st.integers(0, 9),
        fate=st.sampled_from(["on its way", "arrived", "lost"]),
    )
    def write(self, chunks: list[list[Delta]], broken: int = 0, fate: str = "on its way") -> None:
        """Accept chunks, and publish them as one batch; now and then one of them breaks a rule."""
        for number, chunk in enumerate(chunks, 1):
            self.history.append("n1", chunk, broken=number == broken)
        self.history.drain(len(chunks))
        for follower in self.followers:
            if fate == "arrived":
                follower.receive_all()
            elif fate == "lost":
                del follower.inbox[-1:]

    @rule()
    def heartbeat(self) -> None:
        """Tell the head."""
        self.history.heartbeat()

    @rule(pages=st.sampled_from([0, 1, 1, 2, 4]), share=st.sampled_from([0.0, 0.5, 1.0]))
    def snapshot_on(self, pages: int, share: float) -> None:
        """Run the scheduler in steps: begin, write pages, commit once all are written."""
        stored = self.history.stored
        if self.snapshot is None:
            if stored.offset <= stored.snapshot[0]:
                return
            self.snapshot = SnapshotRun(self.history)
        for _ in range(pages):
            if self.snapshot.pages:
                self.snapshot.write_page()
        if pages and not self.snapshot.pages:
            self.snapshot.commit(round(stored.offset * share))
            self.snapshot = None

    @rule()
    def snapshot_fully(self) -> None:
        """Run the scheduler to the end, and cut the log as far as allowed."""
        while (
            self.snapshot is not None
            or self.history.head.offset > (self.history.stored.snapshot[0])
        ):
            self.snapshot_on(4, 1.0)

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def kill_scheduler(self) -> None:
        """Leave the full state half written; the next one begins again at the snapshot."""
        self.snapshot = None

    # -- accidents --------------------------------------------------------------------------------

    @rule(writes=LOST, chunks=REWRITTEN, recover=st.booleans())
    def crash(self, writes: int, chunks: list[list[Delta]], *, recover: bool) -> None:
        """Lose the last writes and all connections, and use the offsets for other batches."""
        self._roll_back(writes)
        for follower in self.followers:
            follower.disconnect()
            follower.subscribe()
        for chunk in chunks:
            self.write([chunk])
        for follower in self.followers if recover else ():
            follower.read_all()

    @precondition(lambda self: not any(map(self._holds_load, self.followers)))
    @rule(writes=LOST, chunks=REWRITTEN, missed=st.integers(0, 2), delivered=st.booleans())
    def crash_behind_proxy(
        self, writes: int, chunks: list[list[Delta]], missed: int, *, delivered: bool
    ) -> None:
        """Lose the last writes, while the subscriptions hold and only miss the first packets.

        A full state that was just read then has to be read again. That is told by the server's run
        id, so it is the shell's to see, and no part of this.
        """
        self._roll_back(writes)
        for number, chunk in enumerate(chunks):
            self.write([chunk], fate="lost" if number < missed else "on its way")
        for follower in self.followers if delivered else ():
            follower.receive_all()

    @rule(chunks=REWRITTEN)
    def wipe(self, chunks: list[list[Delta]]) -> None:
        """Delete everything, as FLUSHALL does, without a notice."""
        self.snapshot = None
        self.history.wipe()
        for chunk in chunks:
            self.write([chunk])

    def _roll_back(self, writes: int) -> None:
        self.snapshot = None
        self.history.roll_back(writes)

    @staticmethod
    def _holds_load(follower: Follower) -> bool:
        return follower.state._load is not None and not isinstance(follower.reading, LoadRead)

    # -- the channel ------------------------------------------------------------------------------

    @rule(number=FOLLOWERS, count=st.integers(1, 4))
    def receive(self, number: int, count: int) -> None:
        """Deliver the next packets."""
        follower = self.followers[number]
        for _ in range(min(count, len(follower.inbox))):
            follower.receive()

    @rule(number=FOLLOWERS, place=PLACES, fate=st.sampled_from(["late", "twice", "lost"]))
    def disturb(self, number: int, place: int, fate: str) -> None:
        """Deliver a packet out of order, or twice, or drop it."""
        follower = self.followers[number]
        if not follower.inbox:
            return
        place %= len(follower.inbox)
        if fate == "lost":
            follower.inbox.pop(place)
        else:
            follower.receive(place, again=fate == "twice")

    @rule(number=FOLLOWERS, steps=STEPS)
    def subscribe(self, number: int, steps: int) -> None:
        """Open a new subscription, whether or not the loss of the old one was noticed."""
        self.followers[number].subscribe()
        self.read_on(number, steps, 1)

    @rule(number=FOLLOWERS, steps=STEPS)
    def disconnect(self, number: int, steps: int) -> None:
        """Lose the subscription; replies may still arrive."""
        self.followers[number].disconnect()
        self.read_on(number, steps, 1)

    @rule(number=FOLLOWERS, steps=STEPS)
    def restart(self, number: int, steps: int) -> None:
        """Replace this replica by a new one that holds nothing."""
        old = self.followers[number]
        self.followers[number] = Follower(old.name, self.history, watched=old.watched)
        self.followers[number].subscribe()
        self.read_on(number, steps, 1)

    # -- reads and time ---------------------------------------------------------------------------

    @rule(number=FOLLOWERS, steps=STEPS, count=st.integers(1, 3))
    def read_on(self, number: int, steps: int, count: int) -> None:
        """Send the next reads, or deliver their replies."""
        follower = self.followers[number]
        for _ in range(steps):
            if follower.reading is None:
                follower.ask(count)
            else:
                follower.answer()

    @rule()
    def read_all(self) -> None:
        """Read until nothing is needed."""
        for follower in self.followers:
            follower.read_all()

    @rule(
        seconds=st.sampled_from([0.5, 2.0, 4.0]),
        noise=st.sampled_from([None, None, "repeats", "unreadable"]),
    )
    def pass_time(self, seconds: float, noise: str | None) -> None:
        """Let time pass with packets that prove nothing; a live replica has a recent proof."""
        for _ in range(round(seconds / 0.5)):
            self.history.now += 0.5
            for follower in self.followers:
                if noise == "unreadable":
                    follower.state.packet(b"\xc1", follower.now)
                elif noise == "repeats" and follower.inbox:
                    follower.receive(again=True)
                follower.state.tick(follower.now)
                if follower.state.phase is Status.LIVE:
                    assert follower.state.lag(follower.now) <= STALENESS_BOUND

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def each_holds_one_history(self) -> None:
        """Values are those of the position, in one history, and the changes told add up to them."""
        for follower in self.followers:
            follower.check()

    @rule(number=FOLLOWERS)
    def settle(self, number: int) -> None:
        """Once faults stop, one heartbeat makes a replica live at the head, and equal."""
        self._settled(self.followers[number])

    def join(self) -> None:
        """A later replica loads the full state and the log, with the same result."""
        self.newcomers += 1
        newcomer = Follower(f"newcomer-{self.newcomers}", self.history, watched=True)
        self._settled(newcomer)
        newcomer.disconnect()

    def _settled(self, follower: Follower) -> None:
        # Nobody is live while something old is pending.
        while self.history.stored.pending:
            self.history.drain(2)
        follower.settle()
        state = follower.state
        assert state.phase is Status.LIVE
        assert state.position == self.history.head
        assert state.covered == self.history.stored.covered
        assert exact(read(state.values)) == exact(self.history.moments[state.position].values)
        follower.check()

    def teardown(self) -> None:
        """Every example ends with all replicas live and equal."""
        for follower in self.followers:
            self._settled(follower)
        self.join()


@pytest.mark.timeout(900)  # shrinking a failure takes minutes
@pytest.mark.parametrize("bulk_bytes", [BULK_BYTES, 20], ids=["no bulk", "bulk"])
def test_replicas_hold_one_history_whatever_happens(
    bulk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content is never a mixture of histories, and equals the server's once faults stop.

    Also where most chunks are bulk chunks, which get lost, repeated and mixed up like packets.
    """
    monkeypatch.setattr(codec, "BULK_BYTES", bulk_bytes)
    effort = settings(max_examples=examples(600), stateful_step_count=20)
    run_state_machine_as_test(HistoryMachine, settings=effort)
