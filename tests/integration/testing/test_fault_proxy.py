"""The fault proxy does to a link what its switches say, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio

from broker.testing import FaultProxy, resp
from broker.testing.server import Server
from broker.testing.switches import Loss
from broker.testing.waiting import eventually

PATIENCE = 20.0
CHANNEL = "fault-proxy"


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """Give a proxy in front of the shared server, on a thread of its own."""
    with FaultProxy(server.url, seed=1) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Callable[[], redis.Redis]]:
    """Give a factory of clients through the proxy, which send nothing twice by themselves."""
    made: list[redis.Redis] = []

    def client(timeout: float | None = PATIENCE) -> redis.Redis:
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        made.append(
            redis.Redis.from_url(proxy.url, protocol=2, socket_timeout=timeout, retry=retry)
        )
        return made[-1]

    yield client
    for one in made:
        one.close()


def messages(subscriber: redis.client.PubSub, count: int) -> list[bytes]:
    """Return the next messages, or fewer if no more come."""
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < deadline:
        message = subscriber.get_message(timeout=0.5)
        if message is not None and message["type"] == "message":
            found.append(message["data"])
    return found


def subscribed(client: redis.Redis, namespace: str) -> redis.client.PubSub:
    """Return a subscription that is confirmed."""
    subscriber = client.pubsub()
    subscriber.subscribe(f"{CHANNEL}:{namespace}")
    eventually(
        lambda: (subscriber.get_message(timeout=0.1) or {}).get("type") == "subscribe",
        PATIENCE,
        "the subscription is confirmed",
    )
    return subscriber


def test_passes_everything_on(connect: Callable[[], redis.Redis], namespace: str) -> None:
    """With every switch off the proxy behaves like the server, with large values and pipelines."""
    client = connect()
    value = bytes(range(256)) * 4096
    client.set(namespace, value)
    pipe = client.pipeline(transaction=True)
    for _ in range(100):
        pipe.get(namespace)
    assert pipe.execute() == [value] * 100
    client.delete(namespace)


def test_split_changes_nothing_but_the_pieces(
    proxy: FaultProxy, connect: Callable[[], redis.Redis], namespace: str
) -> None:
    """Bytes that arrive one by one still make the same requests and replies."""
    proxy.faults.to_server.split = proxy.faults.to_client.split = 3
    client = connect()
    client.set(namespace, b"\r\n$5\r\nabc" * 50)
    assert client.get(namespace) == b"\r\n$5\r\nabc" * 50
    client.delete(namespace)


def test_delay_holds_back(proxy: FaultProxy, connect: Callable[[], redis.Redis]) -> None:
    """A delay of each direction adds up to that of a round trip."""
    client = connect()
    client.ping()
    proxy.faults.to_server.delay = proxy.faults.to_client.delay = 0.1
    began = time.monotonic()
    client.ping()
    assert time.monotonic() - began >= 0.2


def test_lost_reply_is_of_a_command_that_ran(
    proxy: FaultProxy, connect: Callable[[], redis.Redis], namespace: str
) -> None:
    """The server runs the chosen command, its caller gets a broken link; others are untouched."""
    client = connect()
    proxy.faults.lose_replies("INCRBY")
    assert client.ping()
    with pytest.raises(redis.ConnectionError):
        client.incr(namespace)
    assert client.get(namespace) == b"1"
    assert client.incr(namespace) == 2
    assert proxy.counts["replies_lost"] == 1
    client.delete(namespace)


def test_stall_is_a_half_open_link(proxy: FaultProxy, connect: Callable[..., redis.Redis]) -> None:
    """A stalled link, old or new, is silent and does not break; after `heal` it continues."""
    old = connect(timeout=0.2)
    old.ping()
    proxy.faults.stall()
    for client in (old, connect(timeout=0.2)):
        with pytest.raises(redis.TimeoutError):
            client.ping()
    proxy.heal()
    assert old.ping()


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_links_break_and_new_ones_are_let_in(
    proxy: FaultProxy, connect: Callable[[], redis.Redis], how: str
) -> None:
    """Cut and reset break what is there, and only that."""
    client = connect()
    connection = client.connection_pool.get_connection()
    connection.send_command("PING")
    assert connection.read_response() == b"PONG"
    getattr(proxy, how)()
    with pytest.raises(redis.ConnectionError):
        connection.read_response()
    connection.disconnect()
    assert client.ping()
    assert proxy.counts[how] == 1


def test_refuse_breaks_new_connections(
    proxy: FaultProxy, connect: Callable[[], redis.Redis]
) -> None:
    """While refusing, new connections break at once and old ones stay open."""
    old = connect()
    old.ping()
    proxy.faults.refuse = True
    with pytest.raises(redis.ConnectionError):
        connect().ping()
    assert old.ping()
    proxy.heal()
    assert connect().ping()


def test_messages_are_dropped_and_replies_are_not(
    proxy: FaultProxy, connect: Callable[[], redis.Redis], namespace: str
) -> None:
    """Only messages are dropped: the subscription is confirmed, and PUBLISH is answered."""
    proxy.faults.drop_messages = 1.0
    subscriber, publisher = subscribed(connect(), namespace), connect()
    assert publisher.publish(f"{CHANNEL}:{namespace}", b"lost") == 1
    # The publisher's answer may come before the message reaches the proxy.
    eventually(lambda: proxy.counts["messages_dropped"] == 1)
    proxy.heal()
    publisher.publish(f"{CHANNEL}:{namespace}", b"kept")
    assert messages(subscriber, 1) == [b"kept"]
    assert proxy.counts["messages_dropped"] == 1


def test_messages_are_repeated(
    proxy: FaultProxy, connect: Callable[[], redis.Redis], namespace: str
) -> None:
    """A repeated message arrives twice in a row."""
    proxy.faults.repeat_messages = 1.0
    subscriber, publisher = subscribed(connect(), namespace), connect()
    for text in (b"1", b"2"):
        publisher.publish(f"{CHANNEL}:{namespace}", text)
    assert messages(subscriber, 4) == [b"1", b"1", b"2", b"2"]


def test_messages_change_places_and_the_last_one_still_comes(
    proxy: FaultProxy, connect: Callable[[], redis.Redis], namespace: str
) -> None:
    """A delayed message follows the next one, or is sent after a timeout if there is none."""
    proxy.faults.reorder_messages = 1.0
    subscriber, publisher = subscribed(connect(), namespace), connect()
    for text in (b"1", b"2", b"3"):
        publisher.publish(f"{CHANNEL}:{namespace}", text)
    assert messages(subscriber, 3) == [b"2", b"1", b"3"]


def test_server_that_is_away_is_a_broken_link(namespace: str) -> None:
    """Where there is no server, connecting through the proxy fails as it would without."""
    with FaultProxy(f"unix:///nowhere/{namespace}.sock") as proxy:
        client = redis.Redis.from_url(proxy.url, socket_timeout=PATIENCE)
        with pytest.raises(redis.ConnectionError):
            client.ping()
        client.close()


def test_async_with_runs_on_the_callers_loop(server: Server) -> None:
    """`async with` needs no thread, and faults made from the loop itself do not block it."""

    async def use() -> None:
        async with FaultProxy(server.url) as proxy:
            client = redis.asyncio.Redis.from_url(proxy.url, protocol=2)
            assert await client.ping()
            proxy.reset()
            await client.aclose()

    asyncio.run(use())


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_frames_are_found_wherever_the_stream_is_cut(size: int) -> None:
    """However bytes arrive, the same frames come out, byte for byte."""
    frames = [
        b"*2\r\n$4\r\nLLEN\r\n$1\r\nk\r\n",
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":-12\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"$7\r\na\r\nb\r\nc\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n*2\r\n:1\r\n$0\r\n\r\n",
        b"%1\r\n+a\r\n#t\r\n",
        b"PING\r\n",
    ]
    stream, reader = b"".join(frames), resp.Frames()
    found = [
        frame
        for start in range(0, len(stream), size)
        for frame in reader.feed(stream[start : start + size])
    ]
    assert found == frames


def test_foreign_bytes_pass_untouched() -> None:
    """Data that is not in Redis' format is passed on unchanged."""
    reader = resp.Frames()
    assert b"".join(reader.feed(b"*x\r\nabc")) + b"".join(reader.feed(b"def")) == b"*x\r\nabcdef"


def test_every_nth_reply_is_lost() -> None:
    """Every n-th matching request is taken, up to the given number."""
    lost = Loss(b"GET", b"k", times=2, every=3)
    assert [lost.matches(b"GET", b"..k") for _ in range(12)].count(True) == 2
    assert not lost.matches(b"SET", b"..k")


def test_requests_after_the_first_are_swallowed(
    proxy: FaultProxy, connect: Callable[[], redis.Redis], namespace: str
) -> None:
    """The server never receives them, no reply comes, and healing does not restore them."""
    proxy.faults.lose_requests("SET", after=1, containing=namespace.encode())
    first, second, other = connect(), connect(0.3), connect()
    assert first.set(namespace, "1")
    with pytest.raises(redis.TimeoutError):
        second.set(namespace, "2")
    assert proxy.counts["requests_lost"] == 1
    assert other.get(namespace) == b"1"
    proxy.heal()
    assert other.get(namespace) == b"1"
    assert second.set(namespace, "3")
    assert other.getdel(namespace) == b"3"


def test_connection_is_deaf_once_a_request_was_swallowed(proxy: FaultProxy, namespace: str) -> None:
    """A later request must not get an answer that its client takes for the first one's."""
    proxy.faults.lose_requests("PING")
    port = urlsplit(proxy.url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=PATIENCE) as connection:
        connection.sendall(b"PING\r\n" + f"ECHO {namespace}\r\n".encode())
        eventually(lambda: proxy.counts["requests_lost"] == 2, PATIENCE, "both are swallowed")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_bytes_are_counted_each_way(proxy: FaultProxy, connect: Callable[[], redis.Redis]) -> None:
    """Those that were passed on: a reply that was lost is not among them."""
    client = connect()
    client.ping()
    before = dict(proxy.counts)
    client.echo("x" * 1000)
    request, reply = b"*2\r\n$4\r\nECHO\r\n$1000\r\n\r\n", b"$1000\r\n\r\n"
    assert proxy.counts["bytes_to_server"] - before["bytes_to_server"] == 1000 + len(request)
    assert proxy.counts["bytes_to_client"] - before["bytes_to_client"] == 1000 + len(reply)
    proxy.faults.lose_replies("ECHO")
    before = dict(proxy.counts)
    with pytest.raises(redis.ConnectionError):
        client.echo("x" * 1000)
    assert proxy.counts["bytes_to_server"] - before["bytes_to_server"] == 1000 + len(request)
    assert proxy.counts["bytes_to_client"] == before["bytes_to_client"]


def test_counts_tell_what_was_felt(proxy: FaultProxy, connect: Callable[[], redis.Redis]) -> None:
    """A delay, a stall and a split that met nothing are not counted; those that did are."""
    names = ("delayed", "stalled", "split")
    client = connect()
    client.ping()
    assert [proxy.counts[name] for name in names] == [0, 0, 0]
    proxy.faults.to_server.delay, proxy.faults.to_client.split = 0.01, 2
    client.ping()
    assert proxy.counts["delayed"] > 0
    assert proxy.counts["split"] > 0
    proxy.heal()
    proxy.faults.stall()
    impatient = connect(0.3)
    with pytest.raises(redis.TimeoutError):
        impatient.ping()
    assert proxy.counts["stalled"] > 0


@pytest.mark.parametrize("steps", range(5))
def test_no_connection_outlives_the_proxy(server: Server, steps: int) -> None:
    """Neither does one that is accepted at the moment at which the proxy ends."""

    async def play() -> list[socket.socket]:
        async with FaultProxy(server.url) as proxy:
            port = urlsplit(proxy.url).port
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
        return clients

    for client in asyncio.run(play()):
        client.settimeout(PATIENCE)
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
