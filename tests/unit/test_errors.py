"""Errors: what they tell survives the way to another process."""

from __future__ import annotations

import pickle

import pytest

from broker import errors
from broker.errors import BrokerError, ConfigError, DamagedError, DecodeError, UnreadableValueError

CLASSES = [
    one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, BrokerError)
]


@pytest.mark.parametrize(
    "error",
    [
        UnreadableValueError("k", DecodeError("why"), "EWR"),
        UnreadableValueError("k" * 100, DecodeError("why")),
        ConfigError(["one", "two"]),
        DamagedError("key", "what"),
        errors.NumpyMissingError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_it_was(error: BrokerError) -> None:
    """Its class, its text and its attributes, as from a pool of processes."""
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert {**vars(back)}.keys() == vars(error).keys()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_of_error_comes_back(kind: type[BrokerError]) -> None:
    """Whatever its constructor needs."""
    error = kind.__new__(kind, "text")
    error.args = ("text",)
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(back) is kind
    assert back.args == ("text",)
