"""Histories that are published on a shard's channel, but are not the server's. No I/O.

Whoever may publish may publish anything, as the packets of another namespace or database.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 64


class ForeignHistories:
    """The epochs of histories that are not the shard's own; bounded.

    An epoch is foreign if the server was asked because of it, and its own history still has
    another. If it becomes the server's own later, the shard hears nothing, so it subscribes again,
    which forgets everything here.
    """

    def __init__(self) -> None:
        self._epochs: dict[bytes, None] = {}
        self._suspect: bytes | None = None

    def __contains__(self, epoch: bytes) -> bool:
        """Whether packets of this epoch are to be ignored."""
        return epoch in self._epochs

    def suspect(self, epoch: bytes) -> None:
        """A packet of another epoch arrived: the server will be asked which one is its own."""
        self._suspect = epoch

    def own(self, epoch: bytes) -> bytes | None:
        """The server's own history has this epoch; return the suspect if it is foreign."""
        found, self._suspect = self._suspect, None
        self._epochs.pop(epoch, None)
        if found is None or found == epoch:
            return None
        self._epochs[found] = None
        if len(self._epochs) > MOST:
            del self._epochs[next(iter(self._epochs))]
        return found

    def clear(self) -> None:
        """Forget all: the next packets may come from another server."""
        self._epochs.clear()
        self._suspect = None
