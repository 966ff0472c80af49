"""How far we are from what the machine can do."""

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
The same updates, with one part after the other taken away. Whoever is called *bare* never touches
an update: chunks of {DELTAS_A_CHUNK:,} deltas (as our producer fills them while it waits for
Redis) are packed before the clock runs and go over a bare socket, one system call each; the
reader takes bytes, and looks into them when the clock stopped. A client in C could do no less for
an update than nothing. The bare ones write all {PASSES} times over, to take long enough. What
lies between them is what each part costs: between ours and the bare chunks is Python on both
ends, between those and the bare PUBLISH are our two Lua commands and our worker, behind that is
Redis, and behind that copying bytes. *The least of Python* is no limit of the machine but of the
language: a method call for each update, and a dict on the other side, with neither checks nor
Redis.""",
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
            "`append.lua`, each when the one before was accepted; our worker drains; a bare "
            "subscriber reads the headers of the batches.",
        ),
        _bare(
            "bare-publish",
            "the same bytes by bare PUBLISH",
            ("redis",),
            "PUBLISH, each when the one before was answered; nothing is kept, nobody can resume.",
        ),
        _bare(
            "bare-socket",
            "the same bytes over a socket, no Redis",
            (),
            "from process to process over a unix socket.",
        ),
        _bare(
            "python-least",
            "the least of Python, no Redis",
            (),
            "a call for each update puts it into two lists; each thousand is packed by msgpack and "
            "sent over a unix socket; the reader unpacks it and updates a dict.",
        ),
    ),
)
