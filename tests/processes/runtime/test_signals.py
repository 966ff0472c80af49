"""Signal handlers may call every method: it works, or raises at once, and never hangs."""

from __future__ import annotations

import pytest

from broker import Replica
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.effort import examples
from tests.processes.conftest import NewProgram, Serve

# A tight loop of writes; SIGALRM arrives at points that differ from round to round. Each of `CALLS`
# is what the handler does. `faulthandler` ends a program that hangs, with the stacks.
INTERRUPTED = """
import faulthandler, random, signal, sys
from broker import ClosedError, Producer, ReentrantError, Replica
faulthandler.dump_traceback_later(90, exit=True)

url, namespace, name, wanted = sys.argv[1:5]
refused = []

def write(producer):
    producer.set("h", {"by": "handler"})
    producer.set_many({"h1": [1], "h2": 2})
    producer.delete("h3")
    producer.increment("handled")

def act(number, frame):
    try:
        CALLS[name]()
    except ReentrantError:
        refused.append(1)

CALLS = {
    "close": lambda: producer.close(timeout=10),
    "write": lambda: write(producer),
    "flush": lambda: producer.flush(10),
    "stats": lambda: producer.stats(),
    "read": lambda: (replica.snapshot(), replica.stats(), dict(replica), replica.get("h")),
    "close readers": lambda: (changes.close(), replica.close()),
}
signal.signal(signal.SIGALRM, act)
rounds = 0
while rounds < int(wanted):
    rounds += 1
    where = {"namespace": namespace}
    with Producer(url, **where) as producer, Replica(url, **where) as replica:
        replica.wait_live(10)
        changes = replica.changes()
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.01))
        try:
            n = 0
            while signal.getitimer(signal.ITIMER_REAL)[0]:
                n += 1
                producer.set(f"k{n % 9}", {"n": n})
                producer.increment("n")
                if n % 5 == 0:
                    next(changes)
        except (ClosedError, StopIteration):
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
print(rounds, len(refused), flush=True)
"""

# The usual handler: it ends the program, in the middle of a write.
ENDED = """
import faulthandler, signal, sys
from broker import Producer
faulthandler.dump_traceback_later(60, exit=True)

def end(number, frame):
    if sys.argv[4] == "close":
        producer.close()
    sys.exit(0)

producer = Producer(sys.argv[1], namespace=sys.argv[2])
signal.signal(signal.SIGALRM, end)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[3]))
n = 0
try:
    while True:
        producer.set(f"k{n % 7}", {"n": n})
        producer.set("plain", n)
        n += 1
finally:
    print(n, flush=True)
"""


@pytest.mark.parametrize("name", ["close", "write", "flush", "stats", "read", "close readers"])
def test_a_handler_never_waits_for_the_call_that_it_interrupted(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, name: str
) -> None:
    """Interruptions of a tight loop: each call of the handler returns or raises."""
    serve(valkey.url, namespace)
    wanted = examples(30)
    result = start.script(INTERRUPTED, valkey.url, namespace, name, str(wanted)).result(120)
    assert result.code == 0, result.err
    rounds, refused = map(int, result.out.split())
    assert rounds == wanted
    if name in ("close", "write", "read", "close readers"):
        assert not refused


@pytest.mark.parametrize("how", ["exit", "close"])
def test_a_handler_that_ends_the_program_loses_nothing_that_was_set(
    valkey: Server, namespace: str, serve: Serve, start: NewProgram, how: str
) -> None:
    """SystemExit out of the middle of a write: what the calls before it wrote is accepted."""
    serve(valkey.url, namespace)
    with Replica(valkey.url, namespace=namespace) as replica:
        for number in range(examples(6)):
            script = start.script(ENDED, valkey.url, namespace, str(0.05 + number / 997), how)
            result = script.result(90)
            assert (result.code, result.err) == (0, "")
            last = int(result.out) - 1
            # The call that was interrupted may have written, or not.
            eventually(lambda last=last: replica.get("plain") in (last, last + 1))
            assert replica[f"k{last % 7}"]["n"] in (last, last + 7)
