"""What the command prints of texts that other processes wrote."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.model import Change
from broker.protocol.messages import Position
from workers.cli.content import _show, as_text
from workers.cli.terminal import safe

HOSTILE = "a\x1b]0;owned\x07\r\nforged\x9b31m\u202ereversed\x7f\t\u2028."


def test_unsafe_characters_are_escaped_and_all_others_kept() -> None:
    """Letters of any script and joined emoji stay; what controls a terminal does not."""
    assert safe("größer 👩\u200d🚀 שלום") == "größer 👩\u200d🚀 שלום"
    assert safe("a\x1b[31m\n\x7f\x9b\u202e") == r"a\u001b[31m\n\u007f\u009b\u202e"


@given(st.text())
def test_values_stay_the_json_that_they_were(text: str) -> None:
    """Escaping within JSON changes no value, and leaves nothing that is unsafe."""
    printed = as_text({text: text})
    assert json.loads(printed) == {text: text}
    assert safe(printed) == printed


def test_a_change_is_one_line_whatever_its_key_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A key cannot forge a line of `watch`."""
    _show(Change(HOSTILE, {HOSTILE: HOSTILE}, "set", Position()), False)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert safe(out.rstrip("\n").replace("\t", "")) == out.rstrip("\n").replace("\t", "")
