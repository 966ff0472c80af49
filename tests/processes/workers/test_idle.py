"""The cost of all parts together while idle."""

from __future__ import annotations

import logging
import time

import pytest
import redis

from broker import Inspector
from broker.protocol.codec import decode_packet
from broker.protocol.messages import Heartbeat, Packet
from broker.protocol.names import ShardKeys
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, Serve
from tests.processes.programs import START_SECONDS, cpu_seconds, needs_proc

log = logging.getLogger(__name__)

WINDOW_SECONDS = 15.0
MAX_OF_A_CORE = 0.02

# One process for each face; both have done something before they fall quiet.
PRODUCER = """
import signal, sys
from broker import Producer
with Producer(sys.argv[1], namespace=sys.argv[2]) as producer:
    producer.set_many({f"k{n}": n for n in range(1000)})
    producer.flush(10)
    print("quiet", flush=True)
    signal.pause()
"""
REPLICA = """
import signal, sys
from broker import Replica
with Replica(sys.argv[1], namespace=sys.argv[2]) as replica:
    changes = replica.changes()
    while len(replica) < 1000:
        next(changes)
    replica.wait_live(10)
    print("quiet", flush=True)
    signal.pause()
"""


@needs_proc
@pytest.mark.slow
def test_idle_costs_next_to_nothing(
    own_server: OwnServer, namespace: str, serve: Serve, start: NewProgram
) -> None:
    """One idle namespace: under 2 % of a core for all parts, and a heartbeat a second."""
    server = own_server()
    workers = serve(server.url, namespace)
    replica = start.script(REPLICA, server.url, namespace)
    producer = start.script(PRODUCER, server.url, namespace)
    eventually(lambda: "quiet" in replica.out, START_SECONDS, lambda: replica.err)
    eventually(lambda: "quiet" in producer.out, START_SECONDS, lambda: producer.err)
    with Inspector(server.url, namespace=namespace) as inspector:
        # The last work there is: the full state of what was written.
        eventually(lambda: len(inspector.state()) == 1000, 30)

    parts = {
        "workers": workers.pid,
        "replica": replica.pid,
        "producer": producer.pid,
        "server": server.pid,
    }
    with redis.Redis.from_url(server.url, protocol=2) as client, client.pubsub() as listener:
        listener.subscribe(ShardKeys.of(namespace, 0, 1).channel)
        before = {name: cpu_seconds(pid) for name, pid in parts.items()}
        packets = listen(listener, WINDOW_SECONDS)
        used = {name: cpu_seconds(pid) - before[name] for name, pid in parts.items()}

    share = {name: seconds / WINDOW_SECONDS for name, seconds in used.items()}
    log.info("idle share of a core: %s", share)
    assert sum(share.values()) < MAX_OF_A_CORE, share
    assert {type(packet) for packet in packets} == {Heartbeat}
    assert WINDOW_SECONDS * 0.8 <= len(packets) <= WINDOW_SECONDS * 1.1 + 1
    assert all(program.is_running for program in (workers, replica, producer))


def listen(listener: redis.client.PubSub, seconds: float) -> list[Packet]:
    """Return the packets of a window of time."""
    packets = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        message = listener.get_message(timeout=left)
        if message is not None and message["type"] == "message":
            packets.append(decode_packet(message["data"]))
    return packets
