"""The replica's transition table: the expected grid, and `ShardState` in each cell."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.core.shard import ShardState
from broker.core.transitions import TRANSITIONS, Event
from broker.model import Status
from broker.protocol.codec import encode_packet
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Batch, Head, Heartbeat, LogEntry, Position

BOUND = 3.0
NOW = 500.0
EPOCH, OTHER_EPOCH = b"epoch--1", b"epoch--2"
ID_1, ID_2, ID_3, ID_4 = b"batch--1", b"batch--2", b"batch--3", b"batch--4"

# "-" means that the phase stays.
GRID = """
            connecting  loading      catching_up  live         stale        failed  closed
subscribed  loading     -            -            catching_up  catching_up  -       -
lost        -           -            -            stale        -            -       -
next        -           -            -            -            live         -       -
current     -           -            -            -            live         -       -
late        -           -            -            catching_up  catching_up  -       -
duplicate   -           -            -            -            -            -       -
gap         -           -            -            catching_up  catching_up  -       -
behind      -           -            -            catching_up  catching_up  -       -
fork        -           -            loading      loading      loading      -       -
loaded      -           catching_up  -            -            -            -       -
caught_up   -           -            live         -            -            -       -
quiet       -           -            stale        stale        -            -       -
cut         -           -            loading      loading      loading      -       -
silence     -           -            -            stale        -            -       -
unpublished -           -            stale        stale        -            -       -
give_up     failed      failed       failed       failed       failed       -       -
close       closed      closed       closed       closed       closed       closed  -
"""

# Where an event cannot happen: the packet is only kept or not even looked at, the answer is not
# waited for any more, the silence is no news.
_PACKETS = {"next", "current", "late", "duplicate", "gap", "behind", "fork"}
_READS = {"loaded", "caught_up", "quiet", "cut"}
_EITHER = {"unpublished"}
DOES_NOT_HAPPEN = {
    "connecting": _PACKETS | _READS | _EITHER | {"silence"},
    "loading": _PACKETS | _READS - {"loaded"} | _EITHER | {"silence"},
    "catching_up": _PACKETS | {"loaded", "silence"},
    "live": set(_READS),
    "stale": _READS | {"silence"},
    "failed": _PACKETS | _READS | _EITHER | {"silence"},
    "closed": _PACKETS | _READS | _EITHER | {"silence"},
}


def grid() -> dict[tuple[str, str], str]:
    """Read the grid: (phase, event) -> the phase after it."""
    header, *lines = [line.split() for line in GRID.strip().splitlines()]
    return {
        (phase, event): phase if after == "-" else after
        for event, *cells in lines
        for phase, after in zip(header, cells, strict=True)
    }


CELLS = sorted(grid())


def test_every_cell_of_the_table_is_as_written_here() -> None:
    """The table equals the expected grid, for every phase and event."""
    table = {
        (str(phase), str(event)): str(after)
        for phase, row in TRANSITIONS.items()
        for event, after in row.items()
    }
    assert table == grid()
    assert len(table) == len(Status) * len(Event)


# -- through ShardState ---------------------------------------------------------------------------


def batch(offset: int, batch_id: bytes, previous: bytes) -> bytes:
    """Return an empty batch's bytes, published now."""
    return encode_packet(Batch(0, EPOCH, offset, batch_id, previous, 0, offset))


def heartbeat(
    offset: int,
    batch_id: bytes,
    *,
    epoch: bytes = EPOCH,
    age_s: float = 0.0,
    pending_s: float | None = None,
) -> bytes:
    """Return a heartbeat's bytes, published so many seconds ago, with something pending so long."""
    time_ms = 1_000_000 - round(age_s * 1000)
    since = None if pending_s is None else time_ms - round(pending_s * 1000)
    return encode_packet(Heartbeat(0, epoch, offset, batch_id, NO_ID, time_ms, offset, since))


def head(quiet_s: float = 0.0, pending_s: float | None = None) -> Head:
    """Return the head at which every phase below was, or will be, live."""
    position = Position(EPOCH, 2, ID_2)
    since = None if pending_s is None else 1000.0 - pending_s
    return Head(
        *(position, Position(EPOCH, 1, ID_1), 2),
        quiet_s=quiet_s,
        time_s=1000.0,
        pending_since_s=since,
    )


def reach(phase: str) -> ShardState:
    """Return a shard in this phase; from `live` on it is at offset 2 of an epoch."""
    state = ShardState(0, BOUND)
    if phase == "connecting":
        return state
    state.subscribed(NOW)
    state.begin_load(head())
    if phase == "loading":
        return state
    state.end_load()
    state.log_page(head(), [LogEntry(batch(2, ID_2, ID_1))], NOW)
    if phase == "catching_up":
        state.packet(heartbeat(1, ID_1), NOW)
    elif phase == "stale":
        state.tick(NOW + BOUND + 1)
    elif phase == "failed":
        state.give_up()
    elif phase == "closed":
        state.close()
    return state


CAUSES: dict[str, Callable[[ShardState], object]] = {
    "subscribed": lambda state: state.subscribed(NOW),
    "lost": lambda state: state.disconnected(),
    "next": lambda state: state.packet(
        encode_packet(Batch(0, EPOCH, 3, ID_3, ID_2, 1_000_000, 3)), NOW
    ),
    "current": lambda state: state.packet(heartbeat(2, ID_2), NOW),
    "late": lambda state: state.packet(heartbeat(2, ID_2, age_s=BOUND + 1), NOW),
    "duplicate": lambda state: state.packet(batch(2, ID_2, ID_1), NOW),
    "gap": lambda state: state.packet(batch(4, ID_4, ID_3), NOW),
    "behind": lambda state: state.packet(heartbeat(1, ID_1), NOW),
    "fork": lambda state: state.packet(heartbeat(2, ID_2, epoch=OTHER_EPOCH), NOW),
    "loaded": lambda state: state.end_load(),
    "caught_up": lambda state: state.log_page(head(), [], NOW),
    "quiet": lambda state: state.log_page(head(BOUND + 1), [], NOW),
    "cut": lambda state: state.log_page(None, [], NOW),
    "silence": lambda state: state.tick(NOW + BOUND + 1),
    "unpublished": lambda state: (
        state.log_page(head(pending_s=BOUND + 1), [], NOW)
        if state.phase is Status.CATCHING_UP
        else state.packet(heartbeat(2, ID_2, pending_s=BOUND + 1), NOW)
    ),
    "give_up": lambda state: state.give_up(),
    "close": lambda state: state.close(),
}


@pytest.mark.parametrize(("phase", "event"), CELLS)
def test_a_shard_goes_through_every_cell(phase: str, event: str) -> None:
    """Packets and reads cause each event in each phase, or are listed as ineffective."""
    state = reach(phase)
    assert state.phase == phase
    before = state.events[event]
    CAUSES[event](state)
    if event in DOES_NOT_HAPPEN[phase]:
        assert state.events[event] == before
        assert state.phase == phase
    else:
        assert state.events[event] == before + 1
        assert state.phase == grid()[phase, event]
