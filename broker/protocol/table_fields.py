"""Fields of the tables hash: head, flags, one MessagePack object. No I/O."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from broker.errors import DecodeError
from broker.protocol.refusal import refuses
from broker.protocol.sums import with_head, without_head

_NO_FLAGS: Final = b"\0"


def pack_table_field(name: str, offset: int, content: Any) -> bytes:
    """Return a field of the tables hash; `offset` is that of the full state that it belongs to."""
    return with_head(name.encode(), offset, packed_content(content))


def packed_content(content: Any) -> bytes:
    """Return what a field holds, as the digest of the tables counts it: flags, then the object."""
    return _NO_FLAGS + msgpack.packb(content)  # type: ignore[no-any-return]


@refuses
def unpack_table_field(name: str, field: bytes) -> tuple[int, Any]:
    """Return offset and content of a field of the tables hash.

    Raises:
        DecodeError: it does not fit its check sum, has flags, or is not exactly one object.
    """
    offset, content = without_head(name.encode(), field)
    if content[:1] != _NO_FLAGS:
        raise DecodeError("a field of the tables hash has flags")
    return offset, msgpack.unpackb(content[1:])
