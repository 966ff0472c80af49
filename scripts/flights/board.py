"""The live board: a `View` as panels for a terminal of 100 by 30, or as plain lines."""

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts.flights.records import NODES, clock_text
from scripts.flights.view import RATES_OVER_S, Totals, View

WIDTH = 98
LEFT_WIDTH = 44
RIGHT_WIDTH = WIDTH - LEFT_WIDTH
MOVES_SHOWN = 6
STATUS_STYLES = {"live": "bold green", "stale": "bold red", "failed": "bold red"}
MOVE_STYLES = {"departed": "cyan", "arrived": "green", "cancelled": "red", "diverted": "magenta"}


def board(view: View) -> RenderableType:
    """Return the whole board."""
    middle = Columns(
        [
            Panel(traffic(view), title=traffic_title(view), width=LEFT_WIDTH, height=10),
            Panel(copies(view), title="replicas", width=RIGHT_WIDTH, height=10),
        ],
        padding=0,
    )
    return Group(
        Panel(header(view), width=WIDTH, box=box.HEAVY, border_style="blue"),
        Panel(airport_table(view), title="airports, as a replica sees them", width=WIDTH),
        middle,
        Panel(moves(view), title="last movements", width=WIDTH, height=MOVES_SHOWN + 2),
    )


def header(view: View) -> RenderableType:
    """Return the simulated time and the progress of the replay."""
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column()
    line.add_column(ratio=1)
    line.add_column(justify="right")
    fraction = view.fraction()
    line.add_row(
        Text(clock_text(view.minute()), style="bold yellow"),
        ProgressBar(total=1.0, completed=fraction),
        Text(f"{fraction:4.0%}, {view.remaining():.0f} s left"),
    )
    note = view.notes[-1] if view.notes else view.pace()
    return Group(line, Text(note, style="dim", no_wrap=True, overflow="ellipsis"))


def airport_table(view: View) -> RenderableType:
    """Return one row for each airport."""
    table = Table(box=None, expand=True, header_style="dim")
    table.add_column("airport")
    columns = ("scheduled", "departed", "in the air", "arrived", "cancelled", "diverted", "delay")
    for title in columns:
        table.add_column(title, justify="right")
    for name in NODES:
        counts = view.airports.get(name, {})
        departed, arrived = counts.get("departures", 0), counts.get("arrivals", 0)
        diverted = counts.get("diversions", 0)
        delay = counts.get("delay_minutes", 0) / departed if departed else 0.0
        table.add_row(
            Text(name, style="bold yellow"),
            f"{counts.get('scheduled', 0):,}",
            f"{departed:,}",
            Text(f"{departed - arrived - diverted:,}", style="cyan"),
            Text(f"{arrived:,}", style="green"),
            Text(f"{counts.get('cancellations', 0):,}", style="red"),
            Text(f"{diverted:,}", style="magenta"),
            f"{delay:+.1f} min",
        )
    return table


def traffic_title(view: View) -> str:
    """Return the title of the traffic; it says if Redis has not been heard of lately."""
    age = view.totals_age()
    return "through Redis" if age <= RATES_OVER_S else f"through Redis, {age:.0f} s ago"


def pending_age(totals: Totals) -> str:
    """Return since when the oldest pending delta has been accepted, as text."""
    return "" if totals.pending_ms is None else f"for {duration(totals.pending_ms / 1000)}"


def traffic(view: View) -> RenderableType:
    """Return the traffic through Redis: deltas, batches by trigger, bytes, the full state."""
    totals, rates = view.totals, view.rates()
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(justify="right", style="cyan", min_width=10)
    table.add_row("deltas", f"{totals.published:,}", f"{rates.deltas:,.0f}/s")
    table.add_row("batches", f"{totals.batches:,}", f"{rates.batches:,.0f}/s")
    table.add_row("  by count", f"{totals.by_count:,}", share(totals.by_count, totals.batches))
    table.add_row("  by age", f"{totals.by_age:,}", share(totals.by_age, totals.batches))
    table.add_row("published", size(totals.bytes_published), f"{size(rates.bytes_published)}/s")
    table.add_row("pending", f"{totals.pending:,}", pending_age(totals))
    age = (
        "none yet"
        if totals.snapshot_age_ms is None
        else f"{totals.snapshot_age_ms / 1000:.1f} s old"
    )
    table.add_row("full state", f"{totals.state_keys:,} keys", age)
    table.add_row("log", f"{totals.log_entries:,} batches", f"{totals.workers_seen} workers")
    return table


def copies(view: View) -> RenderableType:
    """Return one row for each replica, and one for each node that writes."""
    table = Table.grid(expand=True, padding=(0, 1))
    titles = ("replica", "status", "lag", "behind", "keys", "applied")
    for title in titles:
        table.add_column(title, justify="left" if title in ("replica", "status") else "right")
    table.add_row(*(Text(title, style="dim") for title in titles))
    for name, replica in sorted(view.replicas.items()):
        status = replica["status"]
        table.add_row(
            name,
            Text(status.replace("_", " "), style=STATUS_STYLES.get(status, "yellow")),
            duration(replica["lag"]),
            f"{view.behind(name):,}",
            f"{replica['keys']:,}",
            f"{replica['stats']['deltas_applied']:,}",
        )
    table.add_row(*(Text(title, style="dim") for title in ("node", "", "", "", "", "written")))
    for name, node in sorted(view.nodes.items()):
        state = "done" if node.done == node.total else "writing"
        table.add_row(name, Text(state, style="green"), "", "", "", f"{node.deltas:,}")
    return table


def moves(view: View) -> RenderableType:
    """Return the latest movements, the newest on top."""
    table = Table.grid(expand=True, padding=(0, 2))
    for date, name, route, aircraft, status, delay in reversed(view.moves[-MOVES_SHOWN:]):
        style = MOVE_STYLES.get(status, "")
        table.add_row(date, Text(name, style="bold"), route, aircraft, Text(status, style), delay)
    return table


def plain_line(view: View) -> str:
    """Return one line of progress, for output that is no terminal."""
    if view.started is None:
        return view.notes[-1]
    totals, rates = view.totals, view.rates()
    notes = "".join(f"  ({note})" for note in view.notes[-1:])
    waiting = f" {pending_age(totals)}" if totals.pending else ""
    statuses = ", ".join(
        f"{name} {replica['status']} {duration(replica['lag'])} {view.behind(name)} behind"
        for name, replica in sorted(view.replicas.items())
    )
    return (
        f"{clock_text(view.minute())}  {view.fraction():4.0%}  "
        f"{totals.published:,} deltas ({rates.deltas:,.0f}/s)  {totals.batches:,} batches "
        f"({totals.by_count:,} by count, {totals.by_age:,} by age)  "
        f"{size(totals.bytes_published)}  {totals.pending:,} pending{waiting}  {statuses}{notes}"
    )


def share(part: int, whole: int) -> str:
    """Return a part as a percentage."""
    return f"{part / whole:.0%}" if whole else ""


def size(count: float) -> str:
    """Return a number of bytes as text, with a unit."""
    for unit, factor in (("MB", 1_000_000), ("kB", 1_000)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Return a lag or an age as text; it counts from when Redis accepted the delta."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"
