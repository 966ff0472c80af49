# What the extension holds; the twins in Python say what each promises.

from collections.abc import Callable
from typing import Any

MAX_DEPTH: int
MAX_PACKED_BYTES: int
ROW_BYTES: int
SHORT_BYTES: int

def packed(value: Any, /) -> bytes | None: ...
def pack_fields(fields: list[Any], limit: int, /) -> bytes | None: ...
def unpacker(exactly: Callable[[bytes], Any], /) -> Callable[[bytes], Any]: ...
def plain_size(keys: list[str], cells: list[Any], /) -> tuple[int, int]: ...

class Intake:
    items: list[Any]
    shard: int
    limit: int
    longest: int
    def __init__(self, shard: int) -> None: ...

class Setter:
    _plain_keys: dict[str, Any]
    _notify: Callable[[int], object]
    def set(self, key: str, value: Any) -> Any: ...
