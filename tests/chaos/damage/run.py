"""Damage a server again and again beside a running fleet: it stays right, or says what is wrong."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from broker.errors import BrokerError
from broker.testing.server import VALKEY, Server
from tests.chaos.damage.fleet import BY_S, NODES, SHARDS, DamagedFleet, WrongError, within
from tests.chaos.damage.strokes import Past, Stroke, keys_of, strike

MAX_STROKES: Final = 3  # at once
SHOWN: Final = 3


@dataclass(slots=True)
class Report:
    """What happened in a run.

    Attributes:
        seed: that repeats the choice of damages.
        damages: how often each kind of key was damaged.
        harmless: rounds after which everything was right, and nothing was named.
        named: rounds in which something was named.
        violations: what was wrong, with the damages before.
    """

    seed: int
    damages: Counter[str] = field(default_factory=Counter)
    harmless: int = 0
    named: int = 0
    violations: list[str] = field(default_factory=list)

    def as_object(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "seed": self.seed,
            "damages": dict(self.damages),
            "harmless": self.harmless,
            "named": self.named,
            "violations": self.violations,
            "left_out": {},
            "verdict": "bad" if self.violations else "good",
        }


def run_damage(
    folder: Path, seed: int, seconds: float, binary: str | None, say: Callable[[str], object]
) -> Report:
    """Damage a server of its own for some time; ends at the first violation."""
    report, chance = Report(seed), random.Random(seed)
    server = Server(binary or VALKEY, folder)
    server.start()
    try:
        fleet = DamagedFleet(server.url, f"fuzz-{seed}", folder)
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not report.violations:
                _round(fleet, chance, report, say)
        finally:
            fleet.close()
    finally:
        server.stop()
    return report


def _round(
    fleet: DamagedFleet, chance: random.Random, report: Report, say: Callable[[str], object]
) -> None:
    """Damage, look, mend, and require that all is right again."""
    keys = keys_of(fleet.namespace, SHARDS, NODES)
    past = _PAST.setdefault(fleet.namespace, Past())
    past.note(fleet.raw, keys)
    strokes: list[Stroke] = []
    fleet.told = []
    try:
        fleet.write()
        count = chance.randint(1, MAX_STROKES)
        strokes += [strike(fleet.raw, chance, past, keys) for _ in range(count)]
        report.damages.update(one.key.rpartition("}:")[2].split(":")[0] for one in strokes)
        text = "; ".join(f"{one.key}: {one.what}" for one in strokes)
        named = _survive(fleet, strokes)
    except (WrongError, BrokerError, TimeoutError) as error:
        where = "" if isinstance(error, WrongError) else f" ({traceback.format_exc()[-1500:]})"
        text = "; ".join(f"{one.key}: {one.what}" for one in strokes)
        report.violations.append(f"{text}: {error}{where}; told: {fleet.told[:SHOWN]}")
        say(f"VIOLATION {report.violations[-1]}")
        return
    report.named += bool(named)
    report.harmless += not named
    say(f"{text} -> {named[0][:150] if named else 'right'}")


def _survive(fleet: DamagedFleet, strokes: list[Stroke]) -> list[str]:
    """Return what was named after some damages.

    Raises:
        WrongError: it is not right, and nothing was named; or it cannot be mended.
    """
    told = fleet.told
    if all(one.is_of_content for one in strokes):
        _require_that_all_goes_on(fleet)
    is_flowing = within(2.0, fleet.flows)
    if not is_flowing:
        # A writer whose record was replaced by another one's learns that somebody holds its name.
        fleet.reopen()
    fleet.check_processes()
    told += fleet.damages()
    told += fleet.health() + fleet.lost()
    if not is_flowing and not told:
        # Told by whoever waits: give it the time that silence takes.
        within(6.0, lambda: bool(fleet.health() or fleet.damages()))
        told += fleet.health() + fleet.damages()
        if not told and not fleet.flows(BY_S):
            raise WrongError("nothing flows, and nobody says why")
    if fleet.damages() or not fleet.flows():
        told += fleet.repair()
        fleet.reopen()
        if not within(BY_S, fleet.flows):
            fleet.reopen()
            raise WrongError(f"nothing flows after repair: {fleet.health()} {fleet.damages()}")
    fleet.check_processes()
    told += fleet.lost()
    found = fleet.difference()
    if not found and not told:
        return []
    if found and not told:
        # A self-check says what a look of a moment cannot.
        within(5.0, lambda: bool(fleet.health()))
        told += fleet.health()
        told += [f"verify: {one}" for one in fleet.replica.verify().damaged]
        if not told:
            raise WrongError(found)
    _settle(fleet, found)
    return list(dict.fromkeys(told))


def _require_that_all_goes_on(fleet: DamagedFleet) -> None:
    """Require that a damaged field of the full state stops nobody; nothing was mended yet.

    Raises:
        WrongError: it does.
    """
    if not within(BY_S, fleet.flows):
        raise WrongError(f"a damaged field stops what is written: {fleet.health()}")
    with fleet.joiner():
        pass


def _settle(fleet: DamagedFleet, found: str) -> None:
    """Do what the texts say, until nothing is wrong any more.

    Raises:
        WrongError: it does not help.
    """
    last = found

    def is_right() -> bool:
        nonlocal last
        if fleet.damages():
            fleet.repair()
        fleet.reopen()
        fleet.write_all()
        fleet.accept()
        fleet.write()
        last = fleet.difference() or "; ".join(fleet.damages())
        return not last

    if not within(2 * BY_S, is_right):
        raise WrongError(f"what was told does not mend it: {last}")
    if not within(BY_S, lambda: not fleet.health()):
        raise WrongError(f"it is right, and still doubted: {fleet.health()}")


_PAST: Final[dict[str, Past]] = {}


def print_damage(report: Report, *, as_json: bool, say: Callable[[str], object]) -> None:
    """Print what happened."""
    if as_json:
        print(json.dumps(report.as_object()))
        return
    total = sum(report.damages.values())
    say(f"{total} damages: " + ", ".join(f"{n} {key}" for key, n in report.damages.most_common()))
    say(f"{report.harmless} rounds right, {report.named} named and mended")
    for one in report.violations:
        say(f"violated: {one}")
