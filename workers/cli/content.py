"""`set`, `get`, `delete`, `increment`, `watch`: read and write the state from a shell."""

from __future__ import annotations

import base64
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

import click

from broker import Inspector, Producer, Replica, Status, StatusChange
from broker.errors import BrokerError, UnreadableValueError
from broker.model import Change
from broker.protocol.names import shard_of
from broker.protocol.operations import NAMED
from workers.cli.options import checked_options, connection_options
from workers.cli.terminal import StopOnSignals, Stopped, safe, say, tell

TIMEOUT = 10.0
PUBLISHED_TIMEOUT = 2.0
PUBLISHED_PAUSE = 0.02
MAX_SHOWN = 60  # characters of a value in a message

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def as_text(value: Any) -> str:
    """Return a value as one line of standard JSON.

    Bytes become {"base64": ...}, times ISO 8601 text, and non-finite numbers "NaN", "Infinity" and
    "-Infinity", as in the JSON of protobuf.
    """
    return safe(json.dumps(_finite(value), ensure_ascii=False, default=_other, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _other(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")


def from_text(text: str) -> Any:
    """Return the value of a JSON text; any other text is itself the value.

    Raises:
        click.UsageError: a number that is too large for a float64.
    """
    try:
        return json.loads(text, parse_float=_finite_float)
    except json.JSONDecodeError:
        return text


def _finite_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise click.UsageError(f"{digits} is larger than a float64 can be; write it as a text")
    return number


@click.command("set", context_settings={"ignore_unknown_options": True})
@connection_options
@click.argument("pairs", nargs=-1, required=True, metavar="KEY VALUE [KEY VALUE ...]")
@json_option
def set_key(url: str, namespace: str, pairs: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Set keys. VALUE is JSON (42, true, "text", [1, 2], NaN, Infinity) or else plain text.

    All keys of one call that are in the same shard become visible at once.

    \b
    Example:
      statebroker set door open temperature 21.5
    """  # noqa: D301 - click reads the escapes
    if len(pairs) % 2:
        raise click.UsageError(f"{pairs[-1]!r} has no value; give KEY VALUE pairs")
    mapping = {key: from_text(text) for key, text in zip(pairs[::2], pairs[1::2], strict=True)}
    checked_options(namespace)
    with Producer(url, namespace=namespace) as producer:
        producer.set_many(mapping)
        _accepted(producer, as_json)


@click.command()
@connection_options
@click.argument("keys", nargs=-1, required=True, metavar="KEY ...")
@json_option
def delete(url: str, namespace: str, keys: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Delete keys.

    \b
    Example:
      statebroker delete door temperature
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    with Producer(url, namespace=namespace) as producer:
        for key in keys:
            producer.delete(key)
        _accepted(producer, as_json)


@click.command(context_settings={"ignore_unknown_options": True})
@connection_options
@click.argument("key")
@click.argument("amount", default="1")
@json_option
def increment(url: str, namespace: str, key: str, amount: str, as_json: bool) -> None:  # noqa: FBT001
    """Add AMOUNT to a number: 1 by default, may be negative. An absent key counts as 0.

    Exit with 1 if the key holds no number: then nothing is added. That is not checked for a user
    without the right to read.

    \b
    Example:
      statebroker increment visitors -3
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    with Producer(url, namespace=namespace) as producer:
        producer.increment(key, from_text(amount))
        _accepted(producer, as_json)
        try:
            held = _held(url, namespace, key)
        except UnreadableValueError as error:
            tell(f"{error}; nothing was added")
            sys.exit(1)
    if isinstance(held, bool) or not isinstance(held, int | float):
        tell(f"{key!r} holds {as_text(held)[:MAX_SHOWN]}, which is no number; nothing was added")
        sys.exit(1)


def _held(url: str, namespace: str, key: str) -> Any:
    """Return what a key holds once all that was accepted is published; 0 if that is unknown."""
    deadline = time.monotonic() + PUBLISHED_TIMEOUT
    try:
        with Inspector(url, namespace=namespace) as inspector:
            shards = len(inspector.status().shards)
            while inspector.status().shards[shard_of(key, shards)].pending_deltas:
                if time.monotonic() > deadline:
                    return 0
                time.sleep(PUBLISHED_PAUSE)
            exists, value = inspector.get(key)
            return value if exists else 0
    except UnreadableValueError:
        raise
    except BrokerError:
        # The rights of a producer do not include reading.
        return 0


def _accepted(producer: Producer, as_json: bool) -> None:  # noqa: FBT001 - a flag passed on
    token = str(producer.flush(TIMEOUT))
    if as_json:
        say(json.dumps({"token": token, "deltas": producer.stats().accepted}))


@click.command()
@connection_options
@click.argument("keys", nargs=-1, metavar="[KEY ...]")
@json_option
def get(url: str, namespace: str, keys: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Print values as JSON, read directly from Redis. Without KEY, print the whole state.

    Exit with 1 if a key is absent, or its value cannot be read.

    \b
    Examples:
      statebroker get door
      statebroker get --json
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    with Inspector(url, namespace=namespace) as inspector:
        present, unreadable = _found(inspector, keys) if keys else (inspector.folded(), {})
    if not keys:
        present = dict(sorted(present.items()))
    if as_json:
        say(as_text(present))
    else:
        for key, value in present.items():
            say(*([] if len(keys) == 1 else [key]), as_text(value))
    missing = [key for key in keys if key not in present]
    for key in missing:
        tell(unreadable.get(key, f"{key!r} is absent"))
    sys.exit(1 if missing else 0)


def _found(inspector: Inspector, keys: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of the keys that there are, and why others cannot be read."""
    present, unreadable = {}, {}
    for key in keys:
        try:
            exists, value = inspector.get(key)
        except UnreadableValueError as error:
            unreadable[key] = str(error)
        else:
            if exists:
                present[key] = value
    return present, unreadable


@click.command()
@connection_options
@click.option("--prefix", metavar="TEXT", help="Print only changes of keys that begin with TEXT.")
@click.option("--initial", is_flag=True, help="Print the current state first.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Exit after N changes.")
@json_option
def watch(  # noqa: PLR0917 - how click calls
    url: str,
    namespace: str,
    prefix: str | None,
    initial: bool,  # noqa: FBT001 - how click calls
    count: int | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print every change as it becomes visible, until Ctrl-C.

    Once the replica is live, changes of its status are printed to stderr with the reason.

    \b
    Example:
      statebroker watch --prefix door/ --initial
    """  # noqa: D301 - click reads the escapes
    checked_options(namespace)
    with Replica(url, namespace=namespace, on_status=_Statuses().show) as replica:
        replica.wait_live(TIMEOUT)
        changes = replica.changes(prefix)
        stop = StopOnSignals(changes.close)
        with suppress(Stopped):
            if initial:
                for change in _present(replica, prefix):
                    stop.while_written(partial(_show, change, as_json))
            for number, change in enumerate(changes, start=1):
                stop.while_written(partial(_show, change, as_json))
                if number == count:
                    return


def _present(replica: Replica, prefix: str | None) -> Iterator[Change]:
    """Yield what there is, as changes that set it."""
    content, positions = replica.snapshot()
    for key, value in sorted(content.items()):
        if prefix is None or key.startswith(prefix):
            shard = shard_of(key, len(positions))
            yield Change(key, value, "set", positions[shard], shard)


class _Statuses:
    """Prints changes of the status, from when it was live first until it is closed."""

    def __init__(self) -> None:
        self._was_live = False

    def show(self, change: StatusChange) -> None:
        if self._was_live and change.after is not Status.CLOSED:
            shard = "" if change.shard is None else f" in shard {change.shard}"
            tell(f"{change.before} -> {change.after} ({change.reason}{shard})")
        self._was_live = self._was_live or change.after is Status.LIVE


def _show(change: Change, as_json: bool) -> None:  # noqa: FBT001 - a flag passed on
    if as_json:
        line = {
            "key": change.key,
            "value": change.value,
            "operation": change.operation,
            "shard": change.shard,
            "offset": change.position.offset,
            "resync": change.resync,
            "timestamp_ms": change.timestamp_ms,
        }
        say(as_text(line))
    else:
        value = "" if NAMED[change.operation].removes else as_text(change.value)
        say(change.position.offset, change.operation, change.key, value)
