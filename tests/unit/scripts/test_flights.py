import gzip
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from io import StringIO
from math import inf
from pathlib import Path
from random import Random
from time import monotonic

import msgpack
import pytest
from rich.console import Console

from broker.stats import NamespaceStatus, ServerInfo, ShardStats
from scripts.flights.board import board, plain_line
from scripts.flights.comparison import differences, digest
from scripts.flights.events import Movement, movements_of
from scripts.flights.oracle import final_state
from scripts.flights.records import DATA, Flight, InputError, clock_text, read_flights
from scripts.flights.verdict import Verdict, judge
from scripts.flights.view import Node, Totals, View

HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,"
    "carrier,flight,tailnum,origin,dest,air_time,distance"
)
TO_HOUSTON = "2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400"
TO_MIAMI = "2013,1,1,533,529,4,850,830,20,AA,1141,N14228,LGA,MIA,160,1096"
CANCELLED = "2013,1,1,NA,1630,NA,NA,1815,NA,EV,4308,N18120,EWR,RDU,NA,416"
NO_ARRIVAL = "2013,1,1,1525,1530,-5,1934,1805,NA,MQ,4525,N719MQ,LGA,XNA,NA,1147"


@pytest.fixture(scope="module")
def month() -> list[Flight]:
    """The real flights that come with the demo."""
    return read_flights(DATA)


def flights(tmp_path: Path, *rows: str) -> list[Flight]:
    """Read rows from a file of their own."""
    path = tmp_path / "flights.csv"
    path.write_text("\n".join([HEADER, *rows, ""]))
    return read_flights(path)


def replay(movements: Iterable[Movement]) -> dict[str, object]:
    """Apply movements to a plain dict."""
    state: dict[str, object] = {}
    for movement in movements:
        state.update(movement.sets)
        for key, amount in movement.increments:
            before = state.get(key, 0)
            assert isinstance(before, int)
            state[key] = before + amount
        for key in movement.deletes:
            state.pop(key, None)
    return state


def test_the_real_month_is_read_whole(month: list[Flight]) -> None:
    """Every row is a flight with a key of its own, and the outcomes are those of the source."""
    assert len(month) == len({flight.key for flight in month}) == 27_004
    assert sum(flight.outcome == "cancelled" for flight in month) == 521
    assert sum(flight.outcome == "diverted" for flight in month) == 606 - 521


def test_a_replay_of_the_movements_equals_the_oracle(month: list[Flight]) -> None:
    """Movements and oracle, computed apart, agree on the final state of the real month."""
    state, expected = replay(movements_of(month)), final_state(month)
    assert differences(state, expected) == []
    assert digest(state) == digest(expected)
    kinds = {key.split("/")[0] for key in state}
    assert kinds == {"flight", "aircraft", "count"}


def test_nodes_may_be_interleaved_in_any_way(month: list[Flight]) -> None:
    """Each node's own order is enough: however the nodes overtake one another, the end is equal."""
    movements = movements_of(month[:3000])
    random = Random(7)
    left = {node: [m for m in movements if m.node == node] for node in ("EWR", "JFK", "LGA")}
    mixed: list[Movement] = []
    while left:
        node = random.choice(sorted(left))
        taken = random.randint(1, 200)
        mixed += left[node][:taken]
        left[node] = left[node][taken:]
        if not left[node]:
            del left[node]
    assert replay(mixed) == final_state(month[:3000])


def dropped(movements: list[Movement]) -> list[Movement]:
    """Lose the last movement."""
    return movements[:-1]


def repeated(movements: list[Movement]) -> list[Movement]:
    """Apply one movement twice."""
    return [movements[0], *movements]


def reordered(movements: list[Movement]) -> list[Movement]:
    """Swap the last two writes of one aircraft."""
    last = max(n for n, m in enumerate(movements) if "aircraft/N14228" in m.sets)
    earlier = max(n for n, m in enumerate(movements[:last]) if "aircraft/N14228" in m.sets)
    swapped = list(movements)
    swapped[last], swapped[earlier] = swapped[earlier], swapped[last]
    return swapped


def undeleted(movements: list[Movement]) -> list[Movement]:
    """Forget one delete."""
    first = next(n for n, m in enumerate(movements) if m.deletes)
    return [*movements[:first], replace(movements[first], deletes=()), *movements[first + 1 :]]


@pytest.mark.parametrize("mutation", [dropped, repeated, reordered, undeleted])
def test_a_faulty_stream_does_not_match_the_oracle(
    mutation: Callable[[list[Movement]], list[Movement]], month: list[Flight]
) -> None:
    """A lost, repeated or reordered movement or a forgotten delete is seen in the final state."""
    some = month[:2000]
    assert differences(replay(mutation(movements_of(some))), final_state(some))


def test_times_are_placed_on_the_clock_of_the_airports(tmp_path: Path) -> None:
    """A landing at 08:30 in Houston, 227 minutes in the air after 05:17, is at 09:30."""
    (flight,) = flights(tmp_path, TO_HOUSTON)
    assert flight.departed is not None
    assert clock_text(flight.announced) == "2013-01-01 02:15"
    assert clock_text(flight.departed) == "2013-01-01 05:17"
    assert clock_text(flight.ended) == "2013-01-01 09:30"


def test_delays_run_past_midnight(tmp_path: Path) -> None:
    """A departure delayed into the next day is placed there, whatever its own clock time says."""
    (flight,) = flights(tmp_path, "2013,1,31,15,2245,90,118,2355,83,B6,108,N1,JFK,PWM,42,273")
    assert flight.departed is not None
    assert clock_text(flight.departed) == "2013-02-01 00:15"
    assert clock_text(flight.ended) == "2013-02-01 01:18"


def test_outcomes_and_counters_by_hand(tmp_path: Path) -> None:
    """Arrived, cancelled and diverted flights are counted separately by airport and carrier."""
    rows = flights(tmp_path, TO_HOUSTON, CANCELLED, NO_ARRIVAL)
    assert [flight.outcome for flight in rows] == ["arrived", "cancelled", "diverted"]
    state = replay(movements_of(rows))
    counts = {key: value for key, value in state.items() if key.startswith("count/")}
    assert counts == {
        "count/EWR/scheduled": 2,
        "count/EWR/departures": 1,
        "count/EWR/delay_minutes": 2,
        "count/EWR/arrivals": 1,
        "count/EWR/cancellations": 1,
        "count/EWR/UA/departures": 1,
        "count/EWR/UA/delay_minutes": 2,
        "count/EWR/EV/cancellations": 1,
        "count/LGA/scheduled": 1,
        "count/LGA/departures": 1,
        "count/LGA/delay_minutes": -5,
        "count/LGA/diversions": 1,
        "count/LGA/MQ/departures": 1,
        "count/LGA/MQ/delay_minutes": -5,
    }
    assert state["aircraft/N719MQ"] == {
        "place": None,
        "heading": "XNA",
        "airborne": False,
        "flight": "MQ4525",
        "at": "2013-01-01 18:00",
    }
    assert "aircraft/N18120" not in state
    assert state == final_state(rows)


def test_one_node_writes_an_aircraft(tmp_path: Path) -> None:
    """An aircraft seen at two airports is written by the first of them alone."""
    movements = movements_of(flights(tmp_path, TO_HOUSTON, TO_MIAMI))
    writers = {m.node for m in movements if "aircraft/N14228" in m.sets}
    assert writers == {"EWR"}
    assert [len(m.sets) for m in movements if m.node == "EWR"] == [1, 2, 1, 1, 2]


@pytest.mark.parametrize("missing", ["NA", ""])
def test_missing_values_are_na_or_empty(tmp_path: Path, missing: str) -> None:
    """Both spellings of a missing value mean the same; an unknown aircraft is not written."""
    row = f"2013,1,1,517,515,2,{missing},819,{missing},UA,1545,{missing},EWR,IAH,{missing},1400"
    (flight,) = flights(tmp_path, row)
    assert (flight.aircraft, flight.outcome, flight.arrival_delay) == (None, "diverted", None)
    assert not any(key.startswith("aircraft/") for key in replay(movements_of([flight])))


def test_rows_that_would_share_a_key_are_reported_apart(tmp_path: Path) -> None:
    """A second row of the same flight gets a key of its own, the same one at every reading."""
    keys = [flight.key for flight in flights(tmp_path, TO_HOUSTON, TO_HOUSTON, TO_MIAMI)]
    assert keys[:2] == ["flight/2013-01-01/UA1545/EWR/0515", "flight/2013-01-01/UA1545/EWR/0515/2"]
    assert len(set(keys)) == 3


def test_plain_and_gzip_read_alike(tmp_path: Path, month: list[Flight]) -> None:
    """The content decides whether a file is gzip, not its name."""
    plain = tmp_path / "plain.csv.gz"
    plain.write_bytes(gzip.decompress(DATA.read_bytes()))
    assert read_flights(plain) == month


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    """Columns are found by name, and unused columns are ignored."""
    path = tmp_path / "turned.csv"
    lines = [",".join([*reversed(line.split(",")), "x"]) for line in (HEADER, TO_HOUSTON)]
    path.write_text("\n".join(lines))
    assert read_flights(path) == flights(tmp_path, TO_HOUSTON)


def test_a_file_without_flights_gives_an_empty_state(tmp_path: Path) -> None:
    """A header alone is no flights, no movements and an empty state."""
    none = flights(tmp_path)
    assert (none, movements_of(none), final_state(none)) == ([], [], {})


def test_one_airport_is_enough(tmp_path: Path) -> None:
    """A file in which only one of the nodes occurs gives movements of that node only."""
    rows = flights(tmp_path, TO_HOUSTON)
    assert {movement.node for movement in movements_of(rows)} == {"EWR"}
    assert replay(movements_of(rows)) == final_state(rows)


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        (TO_HOUSTON.replace("EWR", "BOS"), "origin", "'BOS' is not one of EWR, JFK, LGA"),
        (TO_HOUSTON.replace(",515,", ",5l5,"), "sched_dep_time", "'5l5' is not a whole number"),
        (TO_HOUSTON.replace(",515,", ",575,"), "sched_dep_time", "'575' is not a clock time hhmm"),
        (TO_HOUSTON.replace(",515,", ",NA,"), "sched_dep_time", "'NA' is missing"),
        (TO_HOUSTON.replace(",517,515,2,", ",517,515,NA,"), "dep_delay", "'NA' is missing"),
        (TO_HOUSTON.replace("2013,1,1,", "2013,13,1,"), "month", "'13' is not within 1 and 12"),
        (TO_HOUSTON.replace("2013,1,1,", "2013,2,30,"), "day", "'30' is not a day of 2013-02"),
        (TO_HOUSTON.replace(",227,", ",-1,"), "air_time", "'-1' is not within 0 and 1440"),
    ],
)
def test_a_wrong_value_is_reported_with_line_and_column(
    tmp_path: Path, row: str, column: str, reason: str
) -> None:
    """The error names file, line, column, value and fault."""
    with pytest.raises(InputError) as caught:
        flights(tmp_path, TO_MIAMI, row)
    path = tmp_path / "flights.csv"
    assert str(caught.value) == f"{path}, line 3, column {column}: {reason}"


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """All columns that are not there are named at once."""
    path = tmp_path / "flights.csv"
    path.write_text(HEADER.replace("tailnum,", "").replace("air_time,", ""))
    with pytest.raises(InputError, match="line 1: columns are missing: tailnum, air_time"):
        read_flights(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"", "columns are missing: year, month"),
        (b"\x1f\x8b\x08 broken", "cannot be read"),
        (b"\xff\xfe\x00", "not CSV text"),
        ((HEADER + "\n2013,1,1\n").encode(), "line 2: 3 values for 16 columns"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """A file that is absent, empty, broken or cut is refused with its name."""
    path = tmp_path / "flights.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_flights(path)
    assert str(caught.value).startswith(str(path))


def judged(tmp_path: Path, replica: dict[str, object], **changed: object) -> Verdict:
    """Judge one replica of a state with one key and 5 written deltas."""
    state: dict[str, object] = {"count/EWR/departures": 5}
    path = tmp_path / "replica.state"
    path.write_bytes(msgpack.packb(replica))
    stats = {"loads": 1, "deltas_applied": 5, **changed}
    final = {"path": str(path), "digest": digest(replica), "stats": stats}
    totals = Totals(accepted=5, published=5)
    return judge(state, state, state, {"a": final}, deltas=5, totals=totals, from_start={"a"})


def test_a_verdict_is_good_only_if_all_agrees(tmp_path: Path) -> None:
    """A replica with another value, and one that applied a delta twice, are found and named."""
    assert judged(tmp_path, {"count/EWR/departures": 5}).is_good
    other = judged(tmp_path, {"count/EWR/departures": 6})
    assert not other.is_good
    assert other.convergence == [
        "replica a against the full-state hash: count/EWR/departures: 6, expected 5"
    ]
    assert other.oracle == ["replica a against the file: count/EWR/departures: 6, expected 5"]
    twice = judged(tmp_path, {"count/EWR/departures": 5}, deltas_applied=6)
    assert not twice.is_good
    assert twice.accounts == ["5 deltas were written, but 6 applied by replica a"]
    reloaded = judged(tmp_path, {"count/EWR/departures": 5}, deltas_applied=2, loads=2)
    assert reloaded.is_good


def view_halfway() -> View:
    """What is known in the middle of a replay."""
    start = 1_057_000_000
    view = View(27_004, start, start + 44_640, speed=80_000.0)
    view.nodes = {
        name: Node(40_000, 110_000, 20_000, 55_000, start + 22_320)
        for name in ("EWR", "JFK", "LGA")
    }
    stats = {"deltas_applied": 160_000, "offset": 397}
    view.replicas = {
        name: {"status": status, "lag": lag, "keys": 3_300, "stats": stats}
        for name, status, lag in (("a", "live", 0.012), ("b", "catching_up", None))
    }
    move = ["2013-01-15", "UA1545", "EWR → IAH", "N14228", "arrived", "+12 min"]
    view.moves = [move] * 6
    view.started = monotonic()
    view.add_totals(Totals())
    view.add_totals(Totals(published=160_000, offset=400, batches=400, by_count=180, by_age=220))
    return view


def test_the_board_fits_the_terminal() -> None:
    """The whole board is seen at 100 columns and 30 lines, before the start and in the middle."""
    for view in (View(0, 0, 0, speed=inf), view_halfway()):
        console = Console(width=100, height=30, record=True, file=StringIO())
        console.print(board(view))
        lines = console.export_text().splitlines()
        assert len(lines) <= 29
        assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for words in ("50%", "17 s left", "catching up", "12 ms", "45%", "UA1545", "160,000"):
        assert words in text
    assert "b catching_up - 3 behind" in plain_line(view_halfway())


def test_a_stale_board_tells_what_waits_and_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flush workers: how much is pending, for how long, and a lag that grows with it."""
    view = view_halfway()
    view.add_totals(replace(view.totals, pending=14_576, pending_ms=42_358))
    view.replicas["a"] |= {"status": "stale", "lag": 42.4}
    console = Console(width=100, height=30, record=True, file=StringIO())
    console.print(board(view))
    text = console.export_text()
    for words in ("14,576", "for 42.4 s", "stale", "42.4 s", "through Redis ─"):
        assert words in text
    line = plain_line(view)
    assert "14,576 pending for 42.4 s" in line
    assert "a stale 42.4 s" in line
    # The server is away too: what it counted is as old as the last answer.
    later = monotonic() + 30
    monkeypatch.setattr("scripts.flights.view.monotonic", lambda: later)
    console.print(board(view))
    assert "through Redis, 30 s ago" in console.export_text()


def test_the_oldest_pending_delta_of_all_shards_counts() -> None:
    """The board's age is that of the shard that waits longest; nothing pending has none."""
    one = ShardStats(
        **{field.name: 0 for field in fields(ShardStats)}  # type: ignore[arg-type]
        | {"snapshot_age_ms": None, "pending_ms": None, "lease": None}
    )

    def totals(*shards: ShardStats) -> Totals:
        server = ServerInfo(name="redis", version="7.0.15", deployment="single")
        status = NamespaceStatus(
            namespace="flights", protocol=3, server=server, shards=shards, nodes=(), workers=()
        )
        return Totals.of(status)

    assert totals(one).pending_ms is None
    waiting = [replace(one, pending_deltas=2, pending_ms=age) for age in (7, 900)]
    found = totals(one, *waiting)
    assert (found.pending, found.pending_ms) == (4, 900)


def test_differences_tell_what_is_missing_extra_and_other() -> None:
    """Each difference names the key and both values; a count of True is not a 1."""
    found = differences(
        {"a": 1, "b": True, "c": {"x": 1, "y": 2}}, {"b": 1, "c": {"y": 2, "x": 1}, "d": 0}
    )
    assert found == ["a: 1, expected nothing", "b: True, expected 1", "d: nothing, expected 0"]
    assert digest({"c": {"x": 1, "y": 2}}) == digest({"c": {"y": 2, "x": 1}})
    assert digest({"b": True}) != digest({"b": 1})
