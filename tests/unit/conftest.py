"""Settings of the randomised tests."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from tests.effort import EFFORT, examples

settings.register_profile(
    "unit",
    deadline=None,  # two processes share a small machine; time says nothing here
    max_examples=examples(100),
    derandomize=EFFORT <= 1,
    report_multiple_bugs=False,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # slow, for state machines
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("unit")
