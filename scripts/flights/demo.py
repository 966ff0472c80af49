"""The demo itself: three nodes replay, replicas follow, and in the end everything is compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from broker import Inspector
from scripts.flights.lines import Pace
from scripts.flights.oracle import final_state
from scripts.flights.picture import Node, Picture, Totals
from scripts.flights.processes import Child, DemoError
from scripts.flights.records import NODES, Flight
from scripts.flights.stage import Stage
from scripts.flights.verdict import Verdict, judge

REPLICAS = ("a", "b")
SECONDS_A_MINUTE = 60
STATUS_INTERVAL_S = 0.5
TICK_S = 0.1
SETTLE_TIMEOUT_S = 60.0
DEFAULT_REPLAY_S = 33.0
SHORTEST_REPLAY_S = 2.0
FLIGHTS_A_SECOND = 600
KILL_AT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came out."""

    flights: int
    deltas: int
    totals: Totals
    seconds: float
    speed: float
    killed: str | None
    namespace: str
    replicas: dict[str, dict[str, Any]]
    verdict: Verdict


def default_speed(flights: Sequence[Flight]) -> float:
    """Return the simulated seconds a second at which a month lasts 33 s, less if short."""
    if not flights:
        return inf
    span = max(f.ended for f in flights) - min(f.announced for f in flights)
    seconds = min(DEFAULT_REPLAY_S, max(SHORTEST_REPLAY_S, len(flights) / FLIGHTS_A_SECOND))
    return span * SECONDS_A_MINUTE / seconds


class Demo:
    """One run on a stage that is set."""

    def __init__(
        self, stage: Stage, path: Path, flights: Sequence[Flight], speed: float, kill: str | None
    ) -> None:
        self.stage = stage
        self.path = path
        self.flights = flights
        self.kill_next = kill
        self.killed: str | None = None
        first = min((flight.announced for flight in flights), default=0)
        last = max((flight.ended for flight in flights), default=0)
        self.picture = Picture(len(flights), first, last, speed)
        self.producers: dict[str, Child] = {}
        self.subscribers: dict[str, Child] = {}
        self.ready: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.finals: dict[str, dict[str, Any]] = {}
        self.deltas = 0
        self.status_pace = Pace(STATUS_INTERVAL_S)

    def run(self, show: Callable[[Picture], None]) -> Summary:
        """Play from the first movement to the verdict.

        Args:
            show: called some ten times a second with what is known.

        Raises:
            DemoError: a process ended that should not have, or something took far too long.
        """
        self.start(show)
        self.deltas = sum(node.planned_deltas for node in self.picture.nodes.values())
        with Inspector(self.stage.url, namespace=self.stage.namespace) as inspector:
            self.picture.notes.clear()
            started = self.picture.started = monotonic()
            for child in self.producers.values():
                child.tell({"go": True})
            while len(self.tokens) < len(NODES) or self.kill_next:
                self.listen()
                self.look(inspector)
                self.kill_if_due()
                show(self.picture)
            seconds = monotonic() - started
            self.settle(inspector, show)
            totals = self.picture.totals
            verdict = judge(
                inspector.state(),
                inspector.folded(),
                final_state(self.flights),
                self.finals,
                deltas=self.deltas,
                totals=totals,
                from_start=REPLICAS,
            )
        return Summary(
            flights=len(self.flights),
            deltas=self.deltas,
            totals=totals,
            seconds=seconds,
            speed=self.picture.speed,
            killed=self.killed,
            namespace=self.stage.namespace,
            replicas=dict(sorted(self.finals.items())),
            verdict=verdict,
        )

    def start(self, show: Callable[[Picture], None]) -> None:
        """Start producers and subscribers, and wait until all are prepared."""
        self.picture.notes.append("starting the server, workers, producers and subscribers")
        for name in REPLICAS:
            self.start_subscriber(name)
        for node in NODES:
            self.producers[node] = self.stage.children.start(
                f"producer {node}",
                "scripts.flights.producer",
                *("--node", node),
                *("--flights", str(self.path)),
                *("--speed", str(self.picture.speed)),
            )
        everyone = {child.name for child in (*self.producers.values(), *self.subscribers.values())}

        def is_ready() -> bool:
            self.listen()
            show(self.picture)
            return everyone <= self.ready and self.stage.are_workers_ready()

        self.stage.wait_until(is_ready, "all processes to be ready")

    def start_subscriber(self, name: str) -> None:
        """Start one more service that follows."""
        self.subscribers[name] = self.stage.children.start(
            f"replica {name}", "scripts.flights.subscriber"
        )

    def listen(self) -> None:
        """Take the reports that came, and notice processes that ended."""
        for child, report in self.stage.children.received(TICK_S):
            kind = report.pop("kind")
            if kind == "ready":
                self.ready.add(child.name)
            for node, producer in self.producers.items():
                if producer is child:
                    self.hear_producer(node, kind, report)
            for name, subscriber in self.subscribers.items():
                if subscriber is child:
                    self.hear_subscriber(name, kind, report)
        self.stage.children.check()

    def hear_producer(self, node: str, kind: str, report: dict[str, Any]) -> None:
        """Take what a producer reports."""
        if kind == "ready":
            self.picture.nodes[node] = Node(report["total"], report["deltas"])
        elif kind == "progress":
            progress = self.picture.nodes[node]
            progress.minute = report["minute"]
            progress.done = report["done"]
            progress.deltas = report["deltas"]
        elif kind == "done":
            self.tokens[node] = report["token"]

    def hear_subscriber(self, name: str, kind: str, report: dict[str, Any]) -> None:
        """Take what a subscriber reports."""
        if kind == "status":
            # The first replica that lives is the one whose eyes the board uses.
            if name == min(self.subscribers):
                self.picture.airports = report.pop("airports")
                self.picture.moves = report.pop("moves")
            self.picture.replicas[name] = report
        elif kind == "final":
            self.finals[name] = report

    def look(self, inspector: Inspector) -> None:
        """Ask Redis for its counts, now and then."""
        if self.status_pace.is_due():
            self.picture.add_totals(Totals.of(inspector.status()))

    def kill_if_due(self) -> None:
        """SIGKILL what was asked for, in the middle of the replay."""
        if self.kill_next is None or self.picture.fraction() < KILL_AT:
            return
        if self.kill_next == "subscriber":
            name = min(self.subscribers)
            victim = self.subscribers.pop(name)
            self.picture.replicas.pop(name, None)
            self.start_subscriber("c")
            note = "replica c takes its place"
        elif self.kill_next == "flusher":
            victim, note = self.stage.workers["flusher"][0], "the other carries on"
        else:
            found = self.active_scheduler()
            if found is None:
                return
            victim, note = found, "the other takes over when the lease has expired"
        self.stage.children.kill(victim)
        self.picture.notes.append(f"{victim.name} was killed; {note}")
        self.killed, self.kill_next = victim.name, None

    def active_scheduler(self) -> Child | None:
        """Return the scheduler that holds the lease, once Redis has told it."""
        holder = self.picture.totals.lease_holder
        for child in self.stage.workers["scheduler"]:
            if f"-{child.process.pid}-" in holder:
                return child
        return None

    def settle(self, inspector: Inspector, show: Callable[[Picture], None]) -> None:
        """Wait until the replicas hold every write and the full state is current."""
        for name, child in self.subscribers.items():
            path = self.stage.folder / f"replica-{name}.state"
            child.tell({"tokens": list(self.tokens.values()), "path": str(path)})
        seen, deadline = -1, 0.0
        self.picture.notes.append("all is written; waiting for the last snapshot")
        while not self.is_settled():
            self.listen()
            self.look(inspector)
            show(self.picture)
            progress = self.picture.totals.published + self.picture.applied()
            if progress > seen:
                seen, deadline = progress, monotonic() + SETTLE_TIMEOUT_S
            if monotonic() > deadline:
                raise DemoError(self.unsettled())

    def is_settled(self) -> bool:
        """Tell whether there is nothing left to wait for."""
        totals = self.picture.totals
        return (
            self.finals.keys() == self.subscribers.keys()
            and totals.accepted == self.deltas
            and totals.pending == 0
            and totals.is_snapshot_current
        )

    def unsettled(self) -> str:
        """Return what was waited for in vain."""
        totals = self.picture.totals
        absent = sorted(self.subscribers.keys() - self.finals.keys())
        return (
            f"nothing moved for {SETTLE_TIMEOUT_S:.0f} s: {self.deltas:,} deltas written, "
            f"{totals.accepted:,} accepted, {totals.pending:,} pending, "
            f"snapshot {'current' if totals.is_snapshot_current else 'behind'}, "
            f"replicas that did not finish: {', '.join(absent) or 'none'}"
        )
