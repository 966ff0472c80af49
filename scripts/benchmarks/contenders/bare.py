"""The chunks that our producers would send, packed before the clock runs; and their content."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from broker.protocol.codec import decode_chunk, encode_chunk
from broker.protocol.messages import Chunk, Run
from broker.protocol.operations import OP_SET
from scripts.benchmarks.link import RoleConfig

NODE = "bare"
# What fits into `chunk_bytes`: producers fill chunks while they wait for Redis.
DELTAS_A_CHUNK = 7_000
PASSES = 5


def counted(config: RoleConfig) -> list[tuple[int, bytes]]:
    """Return the workload as chunks, each with its number of deltas."""
    keys, values = config.workload()
    found = []
    for first in range(0, len(keys), DELTAS_A_CHUNK):
        page = slice(first, first + DELTAS_A_CHUNK)
        run = Run(OP_SET, keys[page], list(values[page]), None)
        found.append((len(run.keys), encode_chunk(Chunk(NODE, 1, 1, 0, [run]))))
    return found


def unpacked(chunks: Iterable[bytes]) -> dict[str, Any]:
    """Return the state after these chunks."""
    state: dict[str, Any] = {}
    for data in chunks:
        for run in decode_chunk(data).runs:
            state.update(zip(run.keys, run.values or (), strict=True))
    return state
