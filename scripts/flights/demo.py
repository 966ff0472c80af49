"""The demo: three nodes replay, replicas follow, and the final states are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from broker import Inspector
from scripts.flights.deployment import Deployment
from scripts.flights.json_lines import Throttle
from scripts.flights.oracle import final_state
from scripts.flights.processes import Child, DemoError
from scripts.flights.records import NODES, Flight
from scripts.flights.verdict import Verdict, judge
from scripts.flights.view import Node, Totals, View

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
    """The results of one run."""

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
    """Return a speed, in simulated seconds per second, at which a month takes 33 s."""
    if not flights:
        return inf
    span = max(f.ended for f in flights) - min(f.announced for f in flights)
    seconds = min(DEFAULT_REPLAY_S, max(SHORTEST_REPLAY_S, len(flights) / FLIGHTS_A_SECOND))
    return span * SECONDS_A_MINUTE / seconds


class Demo:
    """One run.

    Args:
        deployment: server and workers.
        path: the file of flights.
        flights: its content.
        speed: simulated seconds per second; infinity for no waiting.
        kill: what to SIGKILL in the middle of the replay; None for nothing.
    """

    def __init__(
        self,
        deployment: Deployment,
        path: Path,
        flights: Sequence[Flight],
        speed: float,
        kill: str | None,
    ) -> None:
        self.deployment = deployment
        self.path = path
        self.flights = flights
        self.kill_next = kill
        self.killed: str | None = None
        first = min((flight.announced for flight in flights), default=0)
        last = max((flight.ended for flight in flights), default=0)
        self.view = View(len(flights), first, last, speed)
        self.producers: dict[str, Child] = {}
        self.subscribers: dict[str, Child] = {}
        self.ready: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.finals: dict[str, dict[str, Any]] = {}
        self.deltas = 0
        self.status_throttle = Throttle(STATUS_INTERVAL_S)

    def run(self, show: Callable[[View], None]) -> Summary:
        """Run the replay and the final check.

        Args:
            show: called about ten times a second with the current view.

        Raises:
            DemoError: a process ended unexpectedly, or a step took too long.
        """
        self.start(show)
        self.deltas = sum(node.planned_deltas for node in self.view.nodes.values())
        with Inspector(self.deployment.url, namespace=self.deployment.namespace) as inspector:
            self.view.notes.clear()
            started = self.view.started = monotonic()
            for child in self.producers.values():
                child.order({"go": True})
            while len(self.tokens) < len(NODES) or self.kill_next:
                self.take_reports()
                self.poll_status(inspector)
                self.kill_if_due()
                show(self.view)
            seconds = monotonic() - started
            self.wait_until_settled(inspector, show)
            totals = self.view.totals
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
            speed=self.view.speed,
            killed=self.killed,
            namespace=self.deployment.namespace,
            replicas=dict(sorted(self.finals.items())),
            verdict=verdict,
        )

    def start(self, show: Callable[[View], None]) -> None:
        """Start producers and subscribers, and wait until all are ready."""
        self.view.notes.append("starting the server, workers, producers and subscribers")
        for name in REPLICAS:
            self.start_subscriber(name)
        for node in NODES:
            self.producers[node] = self.deployment.children.start(
                f"producer {node}",
                "scripts.flights.producer",
                *("--node", node),
                *("--flights", str(self.path)),
                *("--speed", str(self.view.speed)),
            )
        names = {child.name for child in (*self.producers.values(), *self.subscribers.values())}

        def is_ready() -> bool:
            self.take_reports()
            show(self.view)
            return names <= self.ready and self.deployment.are_workers_ready()

        self.deployment.wait_until(is_ready, "all processes to be ready")

    def start_subscriber(self, name: str) -> None:
        """Start one more replica."""
        self.subscribers[name] = self.deployment.children.start(
            f"replica {name}", "scripts.flights.subscriber"
        )

    def take_reports(self) -> None:
        """Handle the reports that arrived, and check that all processes run."""
        for child, report in self.deployment.children.received(TICK_S):
            kind = report.pop("kind")
            if kind == "ready":
                self.ready.add(child.name)
            for node, producer in self.producers.items():
                if producer is child:
                    self.on_producer_report(node, kind, report)
            for name, subscriber in self.subscribers.items():
                if subscriber is child:
                    self.on_subscriber_report(name, kind, report)
        self.deployment.children.check()

    def on_producer_report(self, node: str, kind: str, report: dict[str, Any]) -> None:
        """Handle a report of a producer."""
        if kind == "ready":
            self.view.nodes[node] = Node(report["total"], report["deltas"])
        elif kind == "progress":
            progress = self.view.nodes[node]
            progress.minute = report["minute"]
            progress.done = report["done"]
            progress.deltas = report["deltas"]
        elif kind == "done":
            self.tokens[node] = report["token"]

    def on_subscriber_report(self, name: str, kind: str, report: dict[str, Any]) -> None:
        """Handle a report of a subscriber."""
        if kind == "status":
            # The board shows airports and movements as the first replica holds them.
            if name == min(self.subscribers):
                self.view.airports = report.pop("airports")
                self.view.moves = report.pop("moves")
            self.view.replicas[name] = report
        elif kind == "final":
            self.finals[name] = report

    def poll_status(self, inspector: Inspector) -> None:
        """Ask Redis for its counts, at most twice a second."""
        if self.status_throttle.is_due():
            self.view.add_totals(Totals.of(inspector.status()))

    def kill_if_due(self) -> None:
        """SIGKILL the chosen process in the middle of the replay."""
        if self.kill_next is None or self.view.fraction() < KILL_AT:
            return
        if self.kill_next == "subscriber":
            name = min(self.subscribers)
            victim = self.subscribers.pop(name)
            self.view.replicas.pop(name, None)
            self.start_subscriber("c")
            note = "replica c takes its place"
        elif self.kill_next == "flusher":
            victim, note = self.deployment.workers["flusher"][0], "the other continues"
        else:
            found = self.active_scheduler()
            if found is None:
                return
            victim, note = found, "the other takes over when the lease has expired"
        self.deployment.children.kill(victim)
        self.view.notes.append(f"{victim.name} was killed; {note}")
        self.killed, self.kill_next = victim.name, None

    def active_scheduler(self) -> Child | None:
        """Return the scheduler that holds the lease; None if not known yet."""
        holder = self.view.totals.lease_holder
        for child in self.deployment.workers["scheduler"]:
            if f"-{child.pid}-" in holder:
                return child
        return None

    def wait_until_settled(self, inspector: Inspector, show: Callable[[View], None]) -> None:
        """Wait until the replicas hold every write and the full state is current.

        Raises:
            DemoError: nothing changed for too long.
        """
        for name, child in self.subscribers.items():
            path = self.deployment.folder / f"replica-{name}.state"
            child.order({"tokens": list(self.tokens.values()), "path": str(path)})
        seen, deadline = -1, 0.0
        self.view.notes.append("all deltas are written; waiting for the last snapshot")
        while not self.is_settled():
            self.take_reports()
            self.poll_status(inspector)
            show(self.view)
            progress = self.view.totals.published + self.view.applied()
            if progress > seen:
                seen, deadline = progress, monotonic() + SETTLE_TIMEOUT_S
            if monotonic() > deadline:
                raise DemoError(self.unsettled())

    def is_settled(self) -> bool:
        """Return whether everything is published, folded and applied."""
        totals = self.view.totals
        return (
            self.finals.keys() == self.subscribers.keys()
            and totals.accepted == self.deltas
            and totals.pending == 0
            and totals.is_snapshot_current
        )

    def unsettled(self) -> str:
        """Return what is still missing, as text."""
        totals = self.view.totals
        absent = sorted(self.subscribers.keys() - self.finals.keys())
        return (
            f"nothing changed for {SETTLE_TIMEOUT_S:.0f} s: {self.deltas:,} deltas written, "
            f"{totals.accepted:,} accepted, {totals.pending:,} pending, "
            f"snapshot {'current' if totals.is_snapshot_current else 'behind'}, "
            f"replicas that did not finish: {', '.join(absent) or 'none'}"
        )
