"""Damaged fields of one shard's full state: found by reading it bit by bit, mended by the log."""

from __future__ import annotations

import logging
from typing import Final

from broker.backend import page_sizes, queries
from broker.backend.replies import Lease
from broker.backend.session import Session
from broker.engine.log_proof import proved_by_log
from broker.model import ABSENT
from broker.protocol.fields import pack_field, read_page
from broker.protocol.messages import Head
from broker.protocol.names import ShardKeys
from broker.runtime import clock
from workers.unreadable import UnreadableFields

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
PAGES: Final = 5
TRY_AGAIN_S: Final = 10.0  # for keys of which the log proved nothing, at first
MAX_PAUSE_S: Final = 600.0


class Mender:
    """Looks for fields that cannot be read, and writes anew those that the log proves.

    The rest stays as it is: somebody may know what it held.

    Args:
        session: of the scheduler.
        keys: the shard.
        fields: what is known to be unreadable; kept up to date.
    """

    def __init__(self, session: Session, keys: ShardKeys, fields: UnreadableFields) -> None:
        self._session = session
        self._keys = keys
        self._fields = fields
        self._cursor = 0
        self._look_at = 0.0
        self._unproved: frozenset[str] = frozenset()
        self._try_at = 0.0
        self._pause = TRY_AGAIN_S / 2

    async def look(self) -> None:
        """Read some more fields of the full state; after the last ones it begins again.

        Raises:
            BackendError: Redis failed.
        """
        if clock.now() < self._look_at:
            return
        self._look_at = clock.now() + LOOK_EVERY_S
        for _ in range(PAGES):
            self._cursor, names, fields = await queries.state_page(
                self._session.client, self._keys, self._cursor, page_sizes.SCANNED_FIELDS
            )
            self._fields.found(read_page(names, fields).damaged)
            if not self._cursor:
                return

    async def mend(self, head: Head, lease: Lease) -> int:
        """Write anew what the log proves, at the position of the full state; return how many.

        Args:
            head: of the shard.
            lease: ours, with a mark of its own.

        Raises:
            FencedError: the lease was lost, or the server's history changed.
            BackendError: Redis failed.
        """
        names, at = frozenset(self._fields.keys), head.snapshot
        is_new = not names <= self._unproved or clock.now() >= self._try_at
        if not names or not is_new or head.fold_to > at.offset:
            # A half-written full state is finished first.
            return 0
        proved = await proved_by_log(self._session, self._keys, at, names)
        # What it does not prove now it may once another batch has left it: ever less likely.
        self._pause = TRY_AGAIN_S if proved else min(2 * self._pause, MAX_PAUSE_S)
        self._unproved, self._try_at = names - proved.keys(), clock.now() + self._pause
        if not proved:
            return 0
        commands = self._session.commands
        digest, _ = await commands.snapshot_begin(self._keys, lease, at)
        if digest is None:
            # It will be computed from what is there, which must not change meanwhile.
            return 0
        right = [
            (name, pack_field(name, at.offset, cell))
            for name, cell in proved.items()
            if cell is not ABSENT
        ]
        gone = [name for name, cell in proved.items() if cell is ABSENT]
        # The digest has what they held before they were damaged.
        for first in range(0, max(len(right), len(gone)), page_sizes.KEYS):
            page = slice(first, first + page_sizes.KEYS)
            await commands.snapshot_page(self._keys, lease, digest, right[page], gone[page])
            lease = lease.after_page()
        self._fields.mended(proved)
        log.warning(
            "fields_mended prefix=%s keys=%d first=%s",
            *(self._keys.prefix, len(proved), ascii(min(proved))),
        )
        return len(proved)
