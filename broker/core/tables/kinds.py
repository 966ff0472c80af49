"""Which table a caller means."""

from __future__ import annotations

from broker.config import checked_name
from broker.core.tables import need_numpy
from broker.errors import ConfigError
from broker.protocol.messages import TableKey
from broker.protocol.refusal import shown

KEYS = {str: "str", int: "u64"}
VALUES = {float: "f64", int: "i64"}
ALLOWED = "keys are str or int (0 to 2^64 - 1), values are float or int (64 bits)"


def table_key(name: str, keys: object, values: object) -> TableKey:
    """Return the table of a name with keys `str` or `int` (u64) and values `float` or `int`.

    Raises:
        ConfigError: the name is not valid, or keys or values are of another type.
        NumpyMissingError: numpy is not installed.
    """
    need_numpy()
    checked_name("table", name)
    are_types = isinstance(keys, type) and isinstance(values, type)
    if not are_types or keys not in KEYS or values not in VALUES:
        given = [one.__name__ if isinstance(one, type) else shown(one) for one in (keys, values)]
        raise ConfigError([f"table {name!r} of {given[0]} to {given[1]}; {ALLOWED}"])
    return TableKey(name, f"{KEYS[keys]}-{VALUES[values]}")
