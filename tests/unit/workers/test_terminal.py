"""What the command prints of texts that other processes wrote."""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
from pathlib import Path
from threading import Thread

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.model import Change
from broker.protocol.messages import Position
from workers.cli import terminal
from workers.cli.content import _show, as_text
from workers.cli.doctor import _print
from workers.cli.log import _Safe
from workers.cli.terminal import Fault, cell, safe, say, show, table, tell
from workers.doctor import Finding, Severity, Survey

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
    assert unsafe(out) == set()


def unsafe(printed: str) -> set[str]:
    """Return what may not be in the output, of which lines and tabs are our own."""
    return {char for char in printed if char not in "\n\t" and safe(char) != char}


def test_every_way_to_print_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines, messages, errors, tables with any cell: one line a text, and no markup is read."""
    say(HOSTILE, 5, HOSTILE)
    tell(HOSTILE)
    Fault(HOSTILE).show()
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.err.count("\n") == 2
    assert unsafe(printed.out + printed.err) == set()
    show(cell(f"[bold]{HOSTILE}[/]", "bold"), table(["a"], [[HOSTILE], ["[/] :smile: [link=x]"]]))
    printed = capsys.readouterr()
    assert unsafe(printed.out) == set()
    assert "[bold]a" in printed.out
    assert "[/] :smile: [link=x]" in printed.out


def test_all_ever_assigned_controls_and_hidden_characters_are_unsafe() -> None:
    """C0, DEL, C1, bidi, separators, what joins or hides without being seen, tags, surrogates."""
    for first, last in [
        *((0x00, 0x1F), (0x7F, 0x9F), (0x200E, 0x200F), (0x2028, 0x202E), (0x2066, 0x2069)),
        *((0x061C, 0x061C), (0x200B, 0x200B), (0xFEFF, 0xFEFF), (0xE0001, 0xE007F)),
        (0xD800, 0xDFFF),
    ]:
        for code in range(first, last + 1):
            escaped = safe(chr(code))
            assert escaped.isascii(), hex(code)
            assert json.loads(f'"{escaped}"') == chr(code)


def test_doctor_prints_no_control_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, settings and errors of a server are texts of others, too."""
    finding = Finding(HOSTILE, Severity.ERROR, HOSTILE, HOSTILE, HOSTILE, (HOSTILE, "[/]"))
    _print(Survey(HOSTILE, "cluster"), [finding])
    assert unsafe(capsys.readouterr().out) == set()


def test_a_log_line_is_one_line() -> None:
    """A message cannot forge another one, and the lines of a traceback stay."""
    line = _Safe("%(levelname)s %(message)s")
    record = logging.LogRecord("broker", logging.INFO, "", 0, "got %s", (HOSTILE,), None)
    assert "\n" not in line.format(record)
    assert unsafe(line.format(record)) == set()
    try:
        int(HOSTILE)
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = line.format(record).split("\n")
    assert lines[1] == "Traceback (most recent call last):"
    assert unsafe("".join(lines)) == set()


def test_only_one_module_prints() -> None:
    """Whatever a command prints goes through the functions above."""
    for path in Path(terminal.__file__).parent.glob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            named = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
            assert named not in {"echo", "secho", "print", "stdout", "stderr", "Console"}, path


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "", "40", "100000"])
def test_any_number_of_columns_prints_everything(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`COLUMNS=0` is what some containers and editors set."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    show(table(["shard", "offset"], [[n, n * 1000] for n in range(30)]))
    out = capsys.readouterr().out
    assert all(str(n * 1000) in out for n in range(30))
    assert "offset" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252", "koi8-r"])
def test_a_terminal_of_any_encoding_gets_all_lines(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it lacks is escaped; bytes that it would take for controls are never sent."""
    with (tmp_path / "out").open("w", encoding=encoding) as out:
        monkeypatch.setattr("sys.stdout", out)
        say("größer € 東京 \x9b")
        show(table(["±"], [["Zürich 東京"]]))
    data = (tmp_path / "out").read_bytes()
    text = data.decode(encoding)
    assert unsafe(text) == set()
    assert len(text.splitlines()) > 4
    assert ("größer € 東京" in text) == (encoding == "utf-8")


def test_a_full_disk_is_an_error_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as what it is."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(Fault, match="cannot write the output: No space left"):
            say("x")


def test_a_terminal_that_does_not_block_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have set that for both."""
    read, written = os.pipe()
    os.set_blocking(written, False)
    text, got = "x" * (1 << 20), []
    reader = Thread(target=lambda: got.append(_all(read)))
    reader.start()
    with os.fdopen(written, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        say(text)
    reader.join()
    assert got == [text.encode() + b"\n"]


def _all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read()


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `>&-`, where Python has no stdout at all."""
    monkeypatch.setattr("sys.stdout", None)
    say("x")
