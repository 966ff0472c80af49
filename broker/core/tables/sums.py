"""What the digest of the tables counts: fields of keys and values, not what ids mean. No I/O.

Their content has one form only, so a reader computes the same digest from its arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker.core.tables.full_state import block_of_field, is_counted
from broker.protocol.digest import Digest, Entry, entry_of
from broker.protocol.fields import content_in
from broker.protocol.messages import TableKey

Entries = dict[str, Entry]


def entries_of(fields: Mapping[str, bytes]) -> Entries:
    """Return the entry of each field of a tables hash that counts, also of a damaged one."""
    return {
        name: entry_of(name, content_in(one)) for name, one in fields.items() if is_counted(name)
    }


def digest_of(entries: Entries) -> Digest:
    """Return the digest of the fields that have these entries."""
    digest = Digest()
    for one in entries.values():
        digest.add_entry(one)
    return digest


def replace(entries: Entries, digest: Digest, fields: Iterable[tuple[str, bytes]]) -> None:
    """Count fields that take the place of those of the same names, in entries and digest."""
    for name, one in fields:
        if not is_counted(name):
            continue
        if (before := entries.get(name)) is not None:
            digest.add_entry(before, -1)
        entries[name] = entry_of(name, content_in(one))
        digest.add_entry(entries[name])


def altered_blocks(
    fields: Mapping[str, bytes], known: Digest
) -> tuple[bool, list[tuple[TableKey, int]]]:
    """Return whether a tables hash is not what schedulers wrote, and which blocks may not be.

    Blocks share a key range with others, and of fields that are gone no block may be left.
    """
    entries = entries_of(fields)
    wrong = digest_of(entries).differing(known)
    found = {block_of_field(name) for name, one in entries.items() if one.at in wrong}
    return bool(wrong), sorted(found)
