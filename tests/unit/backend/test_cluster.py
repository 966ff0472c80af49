"""What a node's answer to `CLUSTER SLOTS` says of who owns what."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import MovedError

from broker.backend.cluster import Cluster, owners_in
from broker.backend.urls import Address

ASKED = Address("node-1", 6379)


@pytest.mark.parametrize(
    ("owner", "found"),
    [
        ([b"10.0.0.2", 7000, b"id"], Address("10.0.0.2", 7000)),
        ([b"node-2", 7000, b"id", [b"ip", b"10.0.0.2"]], Address("node-2", 7000)),
        # The one that was asked.
        ([None, 7000, b"id", []], Address("node-1", 7000)),
        ([b"", 7000, b"id"], Address("node-1", 7000)),
        # Its name is not known yet.
        ([b"?", 7000, b"id", [b"ip", b"10.0.0.2"]], Address("10.0.0.2", 7000)),
        ([b"?", 7000, b"id", []], None),
        ([b"?", 7000, b"id"], None),
    ],
)
def test_an_owner_is_called_by_an_address_that_leads_to_it(
    owner: list[Any], found: Address | None
) -> None:
    """Never by the sign for a name that is not known yet."""
    known = [b"node-3", 7000, b"id", []]
    reported = [[0, 99, owner, [b"?", 1, b"replica", []]], [100, 16383, known]]
    expected = {(100, 16383): Address("node-3", 7000)}
    if found is not None:
        expected[0, 99] = found
    assert owners_in(reported, ASKED) == expected


def test_a_redirection_to_an_unknown_host_is_not_followed() -> None:
    """The client reads the slots from the nodes again instead."""
    cluster = Cluster([ASKED], lambda _: pytest.fail("nobody is asked"))
    cluster._is_closed = True
    assert cluster.redirected(ASKED, MovedError("7 ?:7001")) is False
    assert cluster._is_stale
    assert cluster._slots[7] is None
