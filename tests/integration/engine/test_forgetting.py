"""Writers that were killed are forgotten by a command; who lives or comes back does right."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from broker import FencedError, Inspector, Producer, Replica
from broker.backend.forgetting import Verdict, judge, writers_of
from broker.backend.replies import Accepted
from broker.backend.session import Session
from broker.backend.stored import NodeRecord
from broker.core.sent_chunks import Packed
from broker.engine.forgetting import forget_idle
from broker.engine.repair import damages, repair
from broker.errors import BrokerError, DamagedError
from broker.protocol.codec import encode_chunk
from broker.protocol.constants import EPOCH_BYTES
from broker.protocol.messages import Chunk, Run
from broker.protocol.names import ShardKeys
from broker.protocol.operations import OP_INCREMENT
from broker.stats import NodeStats
from broker.testing.proxy import FaultProxy
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing, joined
from workers.cli.repair import repair as repair_command
from workers.cli.status import status as status_command

TOKEN = b"01234567"

CloseAtEnd = Callable[[Producer], Producer]
ANSWER_S = 3.0  # producers look once a second
KILLED = 1000


class Writer:
    """A process that writes as a node, step by step."""

    def __init__(self, session: Session, node: str) -> None:
        self.node = node
        self.incarnation = 0
        self._commands = session.commands
        self._keys = session.keys[0]

    async def open(self, incarnation: int | None = None, chunk: int = 0) -> None:
        """Take the name, or go on with it; each chunk has one delta."""
        opened = await self._commands.open(
            self._keys,
            self.node,
            incarnation,
            TOKEN,
            chunk=chunk,
            deltas=chunk,
            epoch=b"e" * EPOCH_BYTES,
        )
        self.incarnation = opened.incarnation

    async def append(self, number: int) -> Any:
        """Append a chunk of one increment of "n"."""
        run = Run(OP_INCREMENT, ["n"], [1])
        chunk = encode_chunk(Chunk(self.node, self.incarnation, number, 0, [run]))
        (reply,) = await self._commands.append(
            *(self._keys, self.node, self.incarnation, TOKEN),
            [Packed(number, 1, number, 0.0, 0, chunk)],
            now=0.0,
            max_age_ms=0,
            max_count=None,
            pending_limit=1 << 20,
        )
        return reply


@pytest.fixture
def close_at_end() -> Iterator[CloseAtEnd]:
    """Give a function that returns a producer, which is closed after the test, fenced or not."""
    producers: list[Producer] = []

    def keep(producer: Producer) -> Producer:
        producers.append(producer)
        return producer

    yield keep
    for producer in producers:
        with suppress(BrokerError):
            producer.close(timeout=1)


async def step(session: Session, name: Any, *, age_ms: int = 0, asking: str = "me") -> Any:
    """Take one step of the command with all writers of the only shard."""
    keys = session.keys[0]
    nodes = await writers_of(session.commands, keys)
    return await judge(session.commands, keys, nodes, step=name, age_ms=age_ms, asking=asking)


def with_session(
    url: str, namespace: str, scenario: Callable[[Session], Awaitable[None]], **options: Any
) -> None:
    """Run a scenario on the Lua commands."""

    async def run() -> None:
        async with joined(url, namespace, **options) as session:
            await scenario(session)

    asyncio.run(run())


def settled(url: str, namespace: str) -> dict[str, Any]:
    """Return the state once everything that was accepted is published."""
    with Inspector(url, namespace=namespace) as inspector:
        eventually(
            lambda: not any(one.pending_deltas for one in inspector.status().shards),
            message=lambda: str(inspector.status()),
        )
        return inspector.folded()


def nodes_of(url: str, namespace: str) -> dict[str, NodeStats]:
    """Return what `status` shows of the nodes."""
    with Inspector(url, namespace=namespace) as inspector:
        return {one.node: one for one in inspector.status().nodes}


async def killed(session: Session, count: int) -> None:
    """Leave the records of processes that wrote one delta each and were killed."""
    for first in range(0, count, 100):
        writers = [Writer(session, f"killed-{at}") for at in range(first, min(first + 100, count))]
        await asyncio.gather(*(writer.open() for writer in writers))
        await asyncio.gather(*(writer.append(1) for writer in writers))


def test_killed_writers_are_forgotten_and_others_stay(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Of 1,000 records none is left; idle and busy producers lose nothing and are not fenced."""
    serving(server.url, namespace)
    with_session(server.url, namespace, lambda session: killed(session, KILLED))
    with (
        Producer(server.url, namespace=namespace, node="busy") as busy,
        Producer(server.url, namespace=namespace, node="quiet") as quiet,
    ):
        quiet.increment("n")
        quiet.flush(10)
        assert settled(server.url, namespace) == {"n": KILLED + 1}

        async def forget() -> tuple[list[str], int]:
            running = asyncio.create_task(
                forget_idle(server.url, namespace, 1.0, answer_s=ANSWER_S)
            )
            written = 0
            while not running.done():
                busy.increment("n")
                written += 1
                await asyncio.to_thread(busy.flush, 10)
            return running.result(), written

        done, written = asyncio.run(forget())
        assert done[:2] == [
            "shard 0: 1,000 writers are forgotten",
            "shard 0: 1 writers are idle, but their processes live",
        ]
        assert set(nodes_of(server.url, namespace)) == {"busy", "quiet"}
        quiet.increment("n")
        quiet.flush(10)
        busy.flush(10)
        assert settled(server.url, namespace) == {"n": KILLED + 2 + written}
        assert (quiet.stats().lost, quiet.stats().resent, busy.stats().lost) == (0, 0, 0)
        assert asyncio.run(damages(server.url, namespace)) == []
    with Producer(server.url, namespace=namespace, node="killed-7") as anew:
        anew.increment("n")
        anew.flush(10)
        assert settled(server.url, namespace) == {"n": KILLED + 3 + written}


def test_a_producer_that_comes_back_is_fenced(
    server: Server, namespace: str, serving: NewServing, close_at_end: CloseAtEnd
) -> None:
    """It was cut off with a reply lost: what Redis had accepted counts once, the rest raises."""
    serving(server.url, namespace)
    with (
        FaultProxy(server.url) as proxy,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer = close_at_end(Producer(proxy.url, namespace=namespace, node="cut"))
        producer.increment("n")
        replica.wait_for(producer.flush(10), 10)
        # The next append is accepted, and nobody hears of it.
        proxy.faults.lose_replies("EVALSHA", times=100)
        proxy.faults.lose_replies("HGET", times=100)
        producer.increment("n", 2)
        eventually(lambda: replica["n"] == 3)
        proxy.faults.refuse = True
        proxy.cut()
        done = asyncio.run(forget_idle(server.url, namespace, 1.0, answer_s=0.1))
        assert done == ["shard 0: 1 writers are forgotten"]
        proxy.heal()
        with pytest.raises(FencedError, match="was forgotten"):
            producer.flush(10)
        with pytest.raises(FencedError, match="was forgotten"):
            producer.increment("n")
        with Producer(server.url, namespace=namespace, node="cut") as anew:
            anew.increment("n", 10)
            replica.wait_for(anew.flush(10), 10)
        assert replica["n"] == 13
        assert settled(server.url, namespace) == {"n": 13}


def test_a_forgotten_incarnation_cannot_go_on(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """However it tries; a newer one of the name, and a writer that was not forgotten, can."""
    serving(server.url, namespace)

    async def scenario(session: Session) -> None:
        other, gone = Writer(session, "other"), Writer(session, "gone")
        await other.open()
        await gone.open()
        assert isinstance(await gone.append(1), Accepted)
        await asyncio.to_thread(settled, server.url, namespace)
        assert await step(session, "ask") == {"gone": Verdict.NOTED, "other": Verdict.NOTED}
        assert await step(session, "ask") == {"gone": Verdict.ASKED, "other": Verdict.ASKED}
        await other.open(other.incarnation)
        assert await step(session, "forget") == {
            "gone": Verdict.FORGOTTEN,
            "other": Verdict.LIVES,
        }
        for chunk in (0, 1):
            with pytest.raises(FencedError, match="was forgotten"):
                await gone.open(gone.incarnation, chunk)
        assert not isinstance(await gone.append(1), Accepted)
        assert not isinstance(await gone.append(2), Accepted)
        assert isinstance(await other.append(1), Accepted)
        await gone.open()
        assert isinstance(await gone.append(1), Accepted)

    with_session(server.url, namespace, scenario)
    assert settled(server.url, namespace) == {"n": 3}


def test_who_is_asked_keeps_its_numbers(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A chunk whose reply was lost is not accepted twice because of the question."""
    serving(server.url, namespace)

    async def scenario(session: Session) -> None:
        writer = Writer(session, "n1")
        await writer.open()
        assert isinstance(await writer.append(1), Accepted)
        await asyncio.to_thread(settled, server.url, namespace)
        await step(session, "ask")
        assert await step(session, "ask") == {"n1": Verdict.ASKED}
        with pytest.raises(DamagedError):
            await writer.append(1)
        # As a producer that never heard of chunk 1.
        await writer.open(writer.incarnation, 0)
        again = await writer.append(1)
        assert isinstance(again, Accepted)
        assert again.duplicate
        assert await step(session, "forget") == {"n1": Verdict.LIVES}

    with_session(server.url, namespace, scenario)
    assert settled(server.url, namespace) == {"n": 1}


def test_nothing_is_forgotten_too_early(server: Server, namespace: str) -> None:
    """With something pending, before the age, by another command's question, from the future."""

    async def scenario(session: Session) -> None:
        keys, client = session.keys[0], session.client
        pending, idle = Writer(session, "pending"), Writer(session, "idle")
        await pending.open()
        await idle.open()
        await pending.append(1)
        ahead = NodeRecord(2**52, TOKEN, 1, 1)
        await client.hset(keys.intake, mapping={"ahead": ahead.packed(), "bad": "nonsense"})
        stay = {"ahead": Verdict.AHEAD, "bad": Verdict.UNREAD, "pending": Verdict.BUSY}
        assert await step(session, "ask") == stay | {"idle": Verdict.NOTED}
        assert await step(session, "ask", age_ms=10**9) == stay | {"idle": Verdict.WAITS}
        assert await step(session, "forget") == stay | {"idle": Verdict.LIVES}
        assert await step(session, "ask") == stay | {"idle": Verdict.ASKED}
        assert await step(session, "ask", asking="another") == stay | {"idle": Verdict.ASKED}
        assert await step(session, "forget") == stay | {"idle": Verdict.WAITS}
        # It wrote, and is asked by nobody then.
        await idle.open(idle.incarnation)
        await idle.append(1)
        assert await step(session, "forget", asking="another") == stay | {"idle": Verdict.BUSY}
        await client.hdel(keys.intake, "idle")
        await client.hset(keys.idle, "left", "1 record")
        assert (await step(session, "ask"))["left"] is Verdict.GONE
        assert not await client.hexists(keys.idle, "left")

    with_session(server.url, namespace, scenario, shards=1)


def test_writing_during_the_command_counts_exactly_once(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Asked and forgotten at any moment, with no time to answer: no chunk counts twice."""
    serving(server.url, namespace)
    accepted, chance = 0, random.Random(1)
    stop = asyncio.Event()

    async def scenario(session: Session) -> None:
        nonlocal accepted
        writer, number, fenced, asked = Writer(session, "n1"), 0, 0, 0
        await writer.open()
        admin = asyncio.create_task(forever(session))
        while (fenced < 5 or asked < 5) and not admin.done():
            try:
                reply = await writer.append(number + 1)
                if isinstance(reply, Accepted):
                    accepted += not reply.duplicate
                    number += 1
                    # Sometimes it is idle for long enough to be forgotten.
                    await asyncio.sleep(chance.uniform(0, 0.02))
                    continue
                await writer.open(writer.incarnation, reply.number - 1)
            except DamagedError:
                asked += 1
                try:
                    await writer.open(writer.incarnation, number)
                except FencedError:
                    fenced, number = fenced + 1, 0
                    await writer.open()
            except FencedError:
                fenced, number = fenced + 1, 0
                await writer.open()
        stop.set()
        await admin

    async def forever(session: Session) -> None:
        while not stop.is_set():
            await step(session, "ask")
            await asyncio.sleep(chance.uniform(0, 0.01))
            await step(session, "forget")

    with_session(server.url, namespace, scenario)
    assert settled(server.url, namespace) == {"n": accepted}


def test_ids_of_tables_end_with_their_writers(
    server: Server,
    namespace: str,
    serving: NewServing,
    raw: redis.Redis,
    close_at_end: CloseAtEnd,
) -> None:
    """A killed table writer's ids go from the full state; its rows stay, as others may use them."""
    serving(server.url, namespace, interval=0.2, log_retention=0.0)
    keys = ShardKeys.of(namespace, 0, 1)
    rows = [f"row-{at}" for at in range(500)]

    def ids() -> list[str]:
        return [name.decode() for name in raw.hkeys(keys.tables) if b":d:" in name]  # type: ignore[union-attr]

    with FaultProxy(server.url) as proxy:
        producer = close_at_end(Producer(proxy.url, namespace=namespace, node="killed"))
        producer.table("t", keys=str).set_many(rows, np.arange(500.0))
        producer.flush(10)
        eventually(lambda: len(ids()) == 1)
        proxy.faults.refuse = True
        proxy.cut()
        assert asyncio.run(forget_idle(server.url, namespace, 1.0, answer_s=0.1))
        with Producer(server.url, namespace=namespace) as other:

            def has_ended() -> bool:
                # Ids end with a full state, and are deleted once the log begins after their end.
                other.increment("k")
                other.flush(10)
                return not ids()

            eventually(has_ended)
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_live(10)
            assert len(replica.table("t")) == 500
        proxy.heal()
        producer.table("t", keys=str).set("row-1", 1.0)
        with pytest.raises(FencedError):
            producer.flush(10)


def test_after_a_repair_of_the_records_those_who_live_go_on(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """All records are lost after some were forgotten: nobody is taken for a forgotten one."""
    serving(server.url, namespace)
    keys = ShardKeys.of(namespace, 0, 1)
    with Producer(server.url, namespace=namespace, node="old") as producer:
        producer.set("k", 1)
        producer.flush(10)
        with_session(server.url, namespace, lambda session: killed(session, 1))
        settled(server.url, namespace)
        asyncio.run(forget_idle(server.url, namespace, 1.0, answer_s=ANSWER_S))
        assert raw.hexists(keys.intake, ":forgotten")
        pipe = raw.pipeline()
        pipe.delete(keys.intake)
        pipe.set(keys.intake, "x")
        pipe.execute()
        asyncio.run(repair(server.url, namespace, None))
        producer.set("k", 2)
        producer.flush(10)
        assert settled(server.url, namespace)["k"] == 2


def test_status_counts_idle_nodes_and_names_the_command(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """Few are no news; of many it is said how many are known to be idle for long."""
    serving(server.url, namespace, interval=0.5)
    arguments = ["--url", server.url, "--namespace", namespace]
    with_session(server.url, namespace, lambda session: killed(session, 100))
    settled(server.url, namespace)
    shown = CliRunner().invoke(status_command, arguments, catch_exceptions=False)
    assert "forget-idle" not in shown.output
    with_session(server.url, namespace, lambda session: killed(session, 120))
    settled(server.url, namespace)
    keys = ShardKeys.of(namespace, 0, 1)
    with_session(server.url, namespace, lambda session: step(session, "ask"))
    assert nodes_of(server.url, namespace)["killed-0"].idle_ms is not None
    # A day later.
    for node, note in raw.hgetall(keys.idle).items():  # type: ignore[union-attr]
        noted_at, _, record = note.partition(b" ")
        raw.hset(keys.idle, node, b"%d %b" % (int(noted_at) - 90_000_000, record))
    with_session(server.url, namespace, lambda session: Writer(session, "killed-0").open())
    shown = CliRunner().invoke(status_command, arguments, catch_exceptions=False)
    text = " ".join(shown.output.split())
    assert "120 nodes have nothing pending, 119 are known to be idle for over a day" in text
    assert "statebroker repair --forget-idle 7d" in text
    shown = CliRunner().invoke(status_command, [*arguments, "--json"], catch_exceptions=False)
    idle = {one["node"]: one["idle_ms"] for one in json.loads(shown.output)["nodes"]}
    assert idle["killed-0"] is None
    assert idle["killed-1"] >= 90_000_000


def test_the_command_forgets(server: Server, namespace: str, serving: NewServing) -> None:
    """Its first run notes, for an age that nobody waits for; wrong options are refused."""
    serving(server.url, namespace)
    with_session(server.url, namespace, lambda session: killed(session, 2))
    settled(server.url, namespace)
    arguments = ["--url", server.url, "--namespace", namespace, "--forget-idle"]
    shown = CliRunner().invoke(repair_command, [*arguments, "7d"], catch_exceptions=False)
    assert shown.output.startswith("shard 0: 2 writers with nothing pending are noted, 2 of them")
    shown = CliRunner().invoke(repair_command, [*arguments, "1s"], catch_exceptions=False)
    assert shown.output == "shard 0: 2 writers are forgotten\n"
    shown = CliRunner().invoke(repair_command, [*arguments, "7d"], catch_exceptions=False)
    assert shown.output == "no writer is idle\n"
    shown = CliRunner().invoke(repair_command, [*arguments, "7d", "--shards", "1"])
    assert shown.exit_code == 2
    with pytest.raises(BrokerError, match="does not exist"):
        asyncio.run(forget_idle(server.url, "nowhere", 1.0))
