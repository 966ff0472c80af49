"""Sentinels that were set up anew: who runs and who starts use the same primary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import redis

from broker import (
    AccessError,
    BrokerError,
    Inspector,
    Producer,
    Replica,
    UnsupportedServerError,
)
from broker.testing.clusters import SentinelDeployment, ask
from broker.testing.server import REDIS, find_binary
from broker.testing.waiting import eventually
from tests.integration.running_workers import Serving


@pytest.fixture
def sentinel_set() -> Iterator[SentinelDeployment]:
    """Start a Sentinel deployment for one test."""
    if isinstance(reason := find_binary(REDIS), str):
        pytest.skip(reason)
    with ExitStack() as stack:

        def directory() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-")))

        one = SentinelDeployment(REDIS, directory)
        stack.callback(one.stop)
        one.start()
        yield one


@pytest.mark.parametrize("is_old_one_alive", [True, False])
@pytest.mark.timeout(180)
def test_most_sentinels_are_believed_when_they_were_set_up_anew(
    sentinel_set: SentinelDeployment, namespace: str, *, is_old_one_alive: bool
) -> None:
    """Running writers, workers and replicas move to the primary that new processes use."""
    # So that the known configuration has a higher epoch than a new one.
    sentinel_set.fail_over()
    sentinel_set.until_whole()
    url, old = sentinel_set.url, sentinel_set.primary
    other = sentinel_set.replicas()[0]
    workers = Serving(url, namespace)
    try:
        with (
            Producer(url, namespace=namespace) as producer,
            Replica(url, namespace=namespace) as replica,
        ):
            producer.set("a", 1)
            replica.wait_for(producer.flush(10), 10)
            gone, *left = sentinel_set.sentinels
            gone.kill()
            for sentinel in left:
                ask(sentinel, "SENTINEL", "REMOVE", sentinel_set.SERVICE)
            ask(other, "REPLICAOF", "NO", "ONE")
            for sentinel in left:
                ask(
                    *(sentinel, "SENTINEL", "MONITOR", sentinel_set.SERVICE),
                    *("127.0.0.1", other.port, 2),
                )
            if not is_old_one_alive:
                old.kill()
            address = f"127.0.0.1:{other.port}"
            eventually(lambda: _held_by(url, namespace) == address, 20, pause=0.2)
            directory = producer._engine._session.connections.directory
            eventually(lambda: str(directory._primary) == address, 20)  # type: ignore[attr-defined]
            producer.set("a", 2)
            replica.wait_for(producer.flush(20), 20)
            replica.wait_live(20)
            assert replica["a"] == 2
            with Inspector(url, namespace=namespace) as inspector:
                assert inspector.get("a") == (True, 2)
    finally:
        with suppress(BrokerError):
            workers.stop()


def _held_by(url: str, namespace: str) -> str | None:
    try:
        with Inspector(url, namespace=namespace) as inspector:
            return inspector.status().shards[0].held_by
    except BrokerError:
        return None


def test_a_url_that_leads_to_another_deployment_ends_at_once(
    sentinel_set: SentinelDeployment, namespace: str
) -> None:
    """A wrong service, a data server as a Sentinel, a server or Sentinel as a Cluster."""
    sentinel = f"127.0.0.1:{sentinel_set.sentinels[0].port}"
    server = f"127.0.0.1:{sentinel_set.primary.port}"
    for url, says in (
        (sentinel_set.url.replace("/fleet", "/fleeet"), "monitor nothing called 'fleeet'"),
        (f"redis+sentinel://{sentinel}/other", "monitor nothing called 'other'"),
        (f"redis+sentinel://{server}/fleet", "no sentinels"),
        (f"redis+cluster://{server}", "not a node of a Redis Cluster"),
        (f"redis+cluster://{sentinel}", "not a node of a Redis Cluster"),
    ):
        with pytest.raises(UnsupportedServerError, match=says) as caught:
            Producer(url, namespace=namespace)
        assert not caught.value.is_temporary


def test_the_login_to_the_sentinels_is_told_as_theirs(
    sentinel_set: SentinelDeployment, namespace: str, tmp_path: Path
) -> None:
    """A missing or wrong sentinel_password; with the right one, or its file, it works."""
    for sentinel in sentinel_set.sentinels:
        with redis.Redis(port=sentinel.port, decode_responses=True) as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", ">guard")  # type: ignore[no-untyped-call]
    file = tmp_path / "password"
    file.write_text("guard")
    for wrong in ("", "?sentinel_password=s3cret"):
        with pytest.raises(AccessError, match="sentinel_password") as caught:
            Producer(sentinel_set.url + wrong, namespace=namespace)
        assert "login to its Sentinels" in str(caught.value)
        assert "s3cret" not in str(caught.value)
    for right in ("?sentinel_password=guard", f"?sentinel_password_file={file}"):
        Producer(sentinel_set.url + right, namespace=namespace).close()


def test_passwords_of_servers_and_sentinels_may_be_rotated(
    sentinel_set: SentinelDeployment, namespace: str, tmp_path: Path
) -> None:
    """Their files are read at each login: after both were changed, and after a failover."""
    files = {"me": tmp_path / "server", "watch": tmp_path / "sentinel"}
    servers = {"me": sentinel_set.servers, "watch": sentinel_set.sentinels}

    def rotate(password: str) -> None:
        for user, file in files.items():
            file.write_text(password)
            for one in servers[user]:
                # That closes the user's connections.
                ask(one, "ACL", "DELUSER", user)
                ask(one, *("ACL", "SETUSER", user, "on", f">{password}", "~*", "&*", "+@all"))

    rotate("one")
    url = sentinel_set.url.replace("//", "//me@") + (
        f"?password_file={files['me']}"
        f"&sentinel_username=watch&sentinel_password_file={files['watch']}"
    )
    workers = Serving(url, namespace)
    try:
        with (
            Producer(url, namespace=namespace) as producer,
            Replica(url, namespace=namespace) as replica,
        ):
            for number, password in enumerate(("two", "three")):
                rotate(password)
                producer.set("a", number)
                replica.wait_for(producer.flush(20), 20)
                assert replica["a"] == number
            sentinel_set.fail_over()
            producer.set("a", "on the next primary")
            replica.wait_for(producer.flush(30), 30)
            replica.wait_live(20)
            assert replica["a"] == "on the next primary"
            with Inspector(url, namespace=namespace) as inspector:
                # The old primary may have accepted it last: then it is sent to the next one again.
                eventually(lambda: inspector.get("a") == (True, "on the next primary"), 20)
    finally:
        with suppress(BrokerError):
            workers.stop()
