"""The distance from what the machine and Python can do."""

from __future__ import annotations

import dataclasses

from scripts.benchmarks.contenders.bare import DELTAS_A_CHUNK, PASSES
from scripts.benchmarks.model import Contender, Scenario
from scripts.benchmarks.scenarios.throughput import CONTENDERS, THROUGHPUT, measure_run

OURS = dataclasses.replace(
    THROUGHPUT.contenders[0], name="statebroker-limit", title="statebroker, object plane"
)


def _bare(name: str, title: str, services: tuple[str, ...], how: str) -> Contender:
    module = CONTENDERS + name.replace("-", "_")
    return Contender(name, title, module, 1_500_000, services, ("redis", "hiredis"), how)


LIMIT = Scenario(
    name="limit",
    title="How far from the limit of the machine",
    method=f"""\
The same updates, with one part removed after another. The *bare* contenders do no work per update:
chunks of {DELTAS_A_CHUNK:,} deltas (as our producer fills them while it waits for Redis) are packed
before the clock runs and sent over a socket, one system call each; the reader receives bytes, and
decodes them after the clock has stopped. They write everything {PASSES} times, to take long enough.
The differences show what each part costs: ours against the bare chunks, Python on both ends; the
bare chunks against the bare PUBLISH, our two Lua commands and our worker; that against the socket,
Redis. *Minimal Python* is a limit of the language, not of the machine: a method call for each
update, and a dict on the other side, with neither checks nor Redis.""",
    headline=THROUGHPUT.headline,
    quick_scale=0.25,
    is_quick=False,
    measure_run=measure_run,
    contenders=(
        OURS,
        _bare(
            "bare-chunks",
            "bare chunks through append, worker and channel",
            ("redis", "worker"),
            "`append.lua`, each when the previous one was accepted; our worker drains; a bare "
            "subscriber reads the headers of the batches.",
        ),
        _bare(
            "bare-publish",
            "the same bytes by bare PUBLISH",
            ("redis",),
            "PUBLISH, each when the previous one was answered; nothing is stored.",
        ),
        _bare(
            "bare-socket",
            "the same bytes over a socket, no Redis",
            (),
            "from process to process over a unix socket.",
        ),
        _bare(
            "python-minimum",
            "minimal Python, no Redis",
            (),
            "a call for each update puts it into two lists; each thousand is packed by msgpack and "
            "sent over a unix socket; the reader unpacks it and updates a dict.",
        ),
    ),
)
