"""Settings: parsed from text, completed with defaults, and all faults reported at once."""

from __future__ import annotations

import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker import aio
from broker.config import (
    SETTINGS,
    allowed,
    checked,
    checked_name,
    conflicts,
    default_node,
    parse_setting,
)
from broker.errors import ConfigError


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_explained_and_its_default_is_allowed(name: str) -> None:
    """Every default lies within the limits that the table allows."""
    setting = SETTINGS[name]
    assert setting.default is not None
    assert setting.low <= setting.default <= setting.high
    assert setting.unit in {"s", "bytes", ""}
    assert len(setting.meaning.split()) >= 3
    assert checked(**{name: None}) == {name: setting.default}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("end", ["low", "high"])
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(name: str, end: str) -> None:
    """The message names the range, with its unit."""
    setting = SETTINGS[name]
    edge = getattr(setting, end)
    assert checked(**{name: edge}) == {name: edge}
    beyond = edge - 1 if end == "low" else edge + 1
    said = re.escape(f"{name}={beyond:.15g} is out of range; allowed: {allowed(name)}")
    with pytest.raises(ConfigError, match=said):
        checked(**{name: beyond})


def test_all_faults_are_named_at_once() -> None:
    """One error names all faults, and no valid setting."""
    with pytest.raises(ConfigError) as caught:
        checked(
            linger="soon",
            shards=0,
            local_delta_max_age=True,
            local_delta_max_count=1.5,
            heartbeat=1,
            chunk_bytes=float("nan"),
            keep_seconds=1,
        )
    assert [fault.split("=")[0].split(" is ")[0] for fault in caught.value.faults] == [
        "linger",
        "shards",
        "local_delta_max_age",
        "local_delta_max_count",
        "unknown setting 'heartbeat'; known: " + caught.value.faults[4].partition("known: ")[2],
        "chunk_bytes",
    ]
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    assert "'heartbeat_interval'" not in caught.value.faults[4]
    assert "heartbeat_interval" in caught.value.faults[4]


@pytest.mark.parametrize("value", ["1", b"1", None, [1], True, 1j, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["shards", "linger"])
def test_only_finite_numbers_are_settings(name: str, value: Any) -> None:
    """Text has to be parsed before, and None means the default."""
    if value is None:
        assert checked(**{name: value}) == {name: SETTINGS[name].default}
    else:
        with pytest.raises(ConfigError, match=f"^{name}="):
            checked(**{name: value})


def test_counts_are_whole_and_come_out_as_int() -> None:
    """Also from a float, as a parsed file gives it; durations may be fractions."""
    assert repr(checked(shards=4.0, linger=0.5)) == "{'shards': 4, 'linger': 0.5}"
    with pytest.raises(ConfigError, match=r"shards=4.5 is not a whole number; allowed: 1 to 4096$"):
        checked(shards=4.5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("10s", 10),
        ("10", 10),
        ("0.5", 0.5),
        (".5s", 0.5),
        ("1m", 60),
        ("1.5 m", 90),
        ("1h", 3600),
        (" 2 s ", 2),
        ("0", 0),
        ("5e-05", 0.00005),
    ],
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    """Plain numbers are seconds."""
    assert parse_setting("local_delta_max_age", text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "-1s",
        "1 2",
        "1d",
        "1,5s",
        "1e",
        "s",
        "0x10",
        "\N{ARABIC-INDIC DIGIT ONE}s",
        "1ms2",
        "nan",
        "inf",
    ],
)
def test_other_text_is_refused_with_what_is_allowed(text: str) -> None:
    """The name, the text and the range are in the message."""
    with pytest.raises(
        ValueError, match="is not a duration in seconds; allowed: 0 to 3600 sec"
    ) as e:
        parse_setting("local_delta_max_age", text)
    assert str(e.value).startswith(f"local_delta_max_age={text!r}")


@pytest.mark.parametrize("text", ["50ms", "10s", "1h"])
def test_counts_and_bytes_have_no_unit(text: str) -> None:
    """A duration where a count belongs is a mistake, not a number."""
    with pytest.raises(ValueError, match=r"is not a whole number; allowed: 1 to 100000$"):
        parse_setting("local_delta_max_count", text)
    assert parse_setting("local_delta_max_count", "500") == 500


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    """Any text gives a number of at least 0, or a ValueError and no other error."""
    for name in SETTINGS:
        try:
            number = parse_setting(name, text)
        except ValueError:
            continue
        assert number >= 0


@pytest.mark.parametrize("name", ["a", "x" * 64, "EWR", "a.b-c_d.9", "..."])
def test_names_of_letters_digits_and_three_signs(name: str) -> None:
    """They come back as they were."""
    assert checked_name("node", name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "a b", "a:b", "a{b}", "ü", "a\n", "\n", "a/b", "*", None, 5, b"a"]
)
def test_other_names_are_refused(name: object) -> None:
    """Characters that could close a hash tag, or collide with another key, are refused."""
    with pytest.raises(ConfigError, match=r"^namespace .* is not a name; use 1 to 64 letters"):
        checked_name("namespace", name)


def test_made_up_node_names_are_names_and_differ() -> None:
    """Two producers without a configured name must not fence each other."""
    names = {default_node() for _ in range(50)}
    assert len(names) == 50
    for name in names:
        checked_name("node", name)


@pytest.mark.parametrize("host", ["", "a host/with:signs", "h" * 200, "münchen"])
def test_no_host_name_makes_a_bad_node_name(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts may be called anything."""
    monkeypatch.setattr("platform.node", lambda: host)
    checked_name("node", default_node())


# -- settings of producers and replicas -----------------------------------------------------------


def test_a_producer_names_every_wrong_setting_at_once() -> None:
    """Misspelt, out-of-range and unknown options are reported together, by the caller's names."""
    wrong: dict[str, Any] = {"lingre": 1, "linger": -1, "staleness_bound": 3, "keep_bytes": "1"}
    with pytest.raises(ConfigError) as caught:
        aio.Producer(**wrong)
    first = [fault.partition("=")[0].partition(";")[0] for fault in caught.value.faults]
    assert first == [
        "unknown setting 'lingre'",
        "unknown setting 'staleness_bound'",
        "linger",
        "keep_bytes",
    ]
    # Those that a producer takes, and no other.
    assert "linger, local_delta_max_age" in caught.value.faults[0]
    assert "when_full" in caught.value.faults[0]
    assert "heartbeat_interval" not in caught.value.faults[0]


def test_a_misspelt_setting_alone_is_refused() -> None:
    """Also if everything else is as it should be."""
    wrong: dict[str, Any] = {"lingre": 1}
    with pytest.raises(ConfigError, match="unknown setting 'lingre'"):
        aio.Producer(**wrong)
    with pytest.raises(ConfigError, match="unknown setting 'lingre'"):
        aio.Replica(**wrong)


def test_a_replica_names_every_wrong_setting_at_once() -> None:
    """A setting that is not given, or None, is the default."""
    wrong: dict[str, Any] = {"linger": 1, "staleness_bound": 0}
    with pytest.raises(ConfigError) as caught:
        aio.Replica(**wrong)
    assert caught.value.faults[0] == (
        "unknown setting 'linger'; known: credentials, self_check_interval, shards, staleness_bound"
    )
    assert caught.value.faults[1].startswith("staleness_bound=0 is out of range")
    for settings in ({}, {"staleness_bound": None}):
        assert (
            aio.Replica(**settings)._engine._follower.staleness_bound
            == SETTINGS["staleness_bound"].default
        )
    assert aio.Replica(staleness_bound=7)._engine._follower.staleness_bound == 7


@pytest.mark.parametrize(
    ("values", "effect"),
    [
        ({"heartbeat_interval": 10.0, "staleness_bound": 3.0}, "stale between two heartbeats"),
        ({"heartbeat_interval": 1.6, "staleness_bound": 3.0}, "stale between two heartbeats"),
        ({"local_delta_max_age": 3.5, "staleness_bound": 3.0}, "stale while a delta waits"),
        ({"chunk_bytes": 2048, "buffer_bytes": 1024}, "the buffer is full before a chunk is"),
        ({"chunk_bytes": 2048, "pending_bytes": 1024}, "a single chunk at a time"),
    ],
)
def test_settings_that_break_each_other_are_named(values: dict[str, float], effect: str) -> None:
    """Each is allowed alone; the text names both, their values and the limit."""
    (found,) = map(str, conflicts(values))
    assert effect in found
    assert all(f"{name}={value:.15g}" in found for name, value in values.items())
    small, large = values
    assert conflicts({small: values[small]}) == []
    assert conflicts({small: values[small], large: values[small] * 2}) == []


def test_the_defaults_fit_together() -> None:
    """No pair of defaults breaks anything."""
    assert conflicts(checked(**dict.fromkeys(SETTINGS))) == []


def test_given_settings_that_break_each_other_are_refused() -> None:
    """A producer names both values, the limit and the fix; a default is not held against it."""
    with pytest.raises(ConfigError) as caught:
        aio.Producer(chunk_bytes=4096, buffer_bytes=2048, pending_bytes=1024)
    first, second = caught.value.faults
    assert first.startswith("chunk_bytes=4096 and buffer_bytes=2048: the buffer is full")
    assert second.endswith("set chunk_bytes to at most 1024, or raise pending_bytes")
    aio.Producer(buffer_bytes=2048)
