"""What `status --check` reports."""

from __future__ import annotations

from broker.backend.damage import Damage
from workers.cli.status import Joined, faults


def test_a_damage_is_a_fault_that_names_the_command_that_mends_it() -> None:
    """Also where everything else is well."""
    damage = Damage("sb:{fleet:0}:meta", "offset is b'x', not a number from 0 to 2**53")
    wrong = faults([], Joined("live"), [damage])
    assert "damaged: sb:{fleet:0}:meta: offset is b'x'" in wrong[-1]
    assert wrong[-1].endswith("run `statebroker repair`")
    assert len(wrong) == 1 + len(faults([], Joined("live")))
