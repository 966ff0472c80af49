"""The least that Redis costs: the same bytes by PUBLISH, to a reader that only counts them."""

from __future__ import annotations

from scripts.benchmarks.contenders.bare import PASSES, counted, unpacked
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.wire import Wire, command

CHANNEL = "bare"


def write(config: RoleConfig, link: Link) -> None:
    """Publish chunk after chunk; done when Redis has taken the last."""
    requests = [command("PUBLISH", CHANNEL, data) for _, data in counted(config)]
    with Wire(config.redis) as wire:
        link.ready()
        began = link.wait_for_go()
        for _ in range(PASSES):
            for request in requests:
                wire.send(request)
                wire.reply()
        link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Read the expected number of bytes, repeatedly into the same buffer."""
    chunks = [data for _, data in counted(config)]
    frames = [command("message", CHANNEL, data) for data in chunks]
    with Wire(config.redis) as wire:
        wire.ask("SUBSCRIBE", CHANNEL)
        link.ready()
        found = wire.read_repeatedly(sum(map(len, frames)), PASSES)
        link.read(lambda: unpacked(chunks) if found == b"".join(frames) else {}, passes=PASSES)
