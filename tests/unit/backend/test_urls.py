"""What a URL says, and what of it is shown."""

from __future__ import annotations

import pytest

from broker.backend.connections import Connections, attached
from broker.backend.urls import Address, cluster_url, read_url, redacted
from broker.errors import ConfigError, EmbeddedError

CLUSTER = "rediss+cluster://me:se%40cret@a.example,b.example:7001,[::1]:7002?ssl_cert_reqs=none"
SENTINEL = (
    "redis+sentinel://me:secret@a,b:26380/fleet/3"
    "?sentinel_username=watch&sentinel_password=p%2Fw&client_name=x"
)


def test_a_cluster_is_named_by_some_of_its_nodes() -> None:
    """Ports have a default; login and options apply to each node."""
    place = read_url(CLUSTER)
    seeds = (Address("a.example", 6379), Address("b.example", 7001), Address("::1", 7002))
    assert (place.kind, place.seeds) == ("cluster", seeds)
    assert place.node_url(seeds[2]) == "rediss://me:se%40cret@[::1]:7002/?ssl_cert_reqs=none"


def test_sentinels_name_a_service_and_have_a_login_of_their_own() -> None:
    """User and password of the URL are the data servers'; the sentinels' are options."""
    place = read_url(SENTINEL)
    assert (place.kind, place.service) == ("sentinel", "fleet")
    assert place.seeds == (Address("a", 26379), Address("b", 26380))
    assert place.node_url(Address("h", 1)) == "redis://me:secret@h:1/3?client_name=x"
    assert place.sentinel_url(Address("h", 1)) == "redis://watch:p%2Fw@h:1/"
    assert read_url("redis+sentinel://a/fleet").sentinel_url(Address("a", 2)) == "redis://a:2/"


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://a,,b",
        "redis+cluster://a:x",
        "redis+cluster://a/1",
        "redis+cluster://a?db=1",
        "redis+cluster://a?sentinel_password=x",
        "redis+sentinel://a",
        "redis+sentinel://a/",
        "redis+sentinel://a/fleet/x",
        "redis+sentinel://a/fleet?what=1",
        "redis://?x=1",
        "redis://h/main",
        "redis://h/1.5",
        "redis://h/-1",
        "redis://h/0/1",
        "redis://h?db=one",
        "redis://h:0",
        "redis+cluster://h:0",
        "redis+sentinel://h:0/fleet",
        "unix+cluster:///x",
        "http://a",
        "redis",
    ],
)
def test_a_url_that_says_nothing_is_refused_before_anything_connects(url: str) -> None:
    """The error names it."""
    with pytest.raises(ConfigError, match="url"):
        read_url(url)


@pytest.mark.parametrize("url", [CLUSTER, SENTINEL, CLUSTER + "&bad=1", SENTINEL + "&bad=1"])
def test_no_password_is_ever_shown(url: str) -> None:
    """Not in the name, and not in an error."""
    shown = redacted(url)
    if "bad" in url:
        with pytest.raises(ConfigError) as refused:
            read_url(url)
        shown += str(refused.value)
    assert "cret" not in shown
    assert "p%2Fw" not in shown
    assert "fleet" in shown or "b.example:7001" in shown


def test_the_cluster_of_a_node_has_a_url() -> None:
    """It is the node's URL without the database; another database or a unix socket has none."""
    assert cluster_url("redis://u:p@h:7000/0") == "redis+cluster://u:p@h:7000"
    assert cluster_url("rediss://h?ssl_ca_certs=x&db=0") == "rediss+cluster://h?ssl_ca_certs=x"
    assert cluster_url("redis://h/1") is None
    assert cluster_url("unix:///run/redis.sock") is None


@pytest.mark.parametrize(
    "url",
    [
        '"redis://me:secret@h"',
        "'redis://:secret@h/0'",
        " redis://me:secret@h",
        "redis:/me:secret@h",
        "redis//:secret@h",
        "me:secret@h:6379",
        "redis://me:se@cr:secret@h",
        "http://me:secret@h",
        *("\tredis://me:secret@h", "redis://me:secret@h\n", "rediss://me:secret\n@h"),
        *("redis://me:secret", "redis://:secret/0", "redis://me:secret.h:6379", "redis://h:secret"),
        *("redis://h:6379:secret", "redis:///me:secret@h", "redis://me;secret@h"),
        *("redis://me:secret%40h:6379", "redis://me:secret\uff20h", "redis://[me:secret@h"),
        *("redis://h#password=secret", "redis://me:secret#@h", "redis://me:a/secret@h"),
        *("redis://h&password=secret", "redis://h;password=secret", "redis://h -a secret"),
        *("redis://h,password=secret", "h:6379,password=secret,ssl=True", "redis2://me:secret@h"),
        *("redis+sentinel://h1,me:secret@h2/f", "redis+cluster://me:secret@h:x", "secret"),
        *("embedded://me:secret@h", "embedded:///d?password=secret", "redis-cli -h h -a secret"),
        *("STATEBROKER_URL=redis://me:secret@h", "redis://h?password=secret", "me:secret"),
    ],
)
def test_a_password_is_hidden_in_a_malformed_url_too(url: str) -> None:
    """Quotes of an env file, blanks, half a scheme: neither the text nor the error shows it."""
    assert "secret" not in redacted(url)
    try:
        found = repr(read_url(url))
        attached(url)
    except (ConfigError, EmbeddedError) as error:
        found = str(error)
    assert "secret" not in found


def test_quotes_around_a_url_are_told() -> None:
    """As `docker --env-file` keeps them."""
    with pytest.raises(ConfigError, match="quotes or blanks around it"):
        read_url('"redis://me:secret@h"')


def test_what_holds_a_url_does_not_show_it() -> None:
    """The objects of this package and the clients of redis-py."""
    connections = Connections("redis://me:secret@h/0")
    client = connections.commands()
    shown = (connections, client, client.connection_pool, client.connection_pool.make_connection())
    assert "secret" not in repr(shown)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://host", 0),
        ("redis://host/", 0),
        ("redis://me:secret@host:1/12", 12),
        ("redis://host/3?db=2", 2),
        ("rediss://host?db=5", 5),
        ("unix:///run/redis.sock", 0),
        ("unix:///run/redis.sock?db=4", 4),
        ("redis+sentinel://a,b/service", 0),
        ("redis+sentinel://a:1/service/7", 7),
        ("redis+sentinel://a:1/service/7?db=6", 6),
        ("redis+cluster://a,b", 0),
    ],
)
def test_the_database_is_the_one_that_clients_select(url: str, database: int) -> None:
    """Channels are named by it: nobody may listen where nobody publishes."""
    connections = Connections(url)
    assert connections.database == database
    where = None if url.startswith(("redis://", "rediss://", "unix://")) else Address("host", 1)
    selected = connections.subscriber(where).connection_pool.connection_kwargs
    assert int(selected.get("db") or 0) == database
