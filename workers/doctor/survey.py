"""Collect the facts of every server of a deployment, and of its Sentinels."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.backend.connections import Connections, attached, translated
from broker.backend.preflight import is_cluster, of_cluster
from broker.backend.urls import Address, RedisURL, read_url, redacted
from broker.errors import BackendError
from broker.protocol.names import ShardKeys
from workers.doctor.examine import allowed, examine, made_as, rates, rhythm
from workers.doctor.model import Facts, SentinelFacts, Survey


async def survey(
    url: str,
    namespace: str,
    *,
    node: str = "doctor",
    wanted: Sequence[str] = (),
    seconds: float = 1.0,
) -> Survey:
    """Return the facts of a deployment; an unreachable server is a fact too.

    Args:
        url: any supported URL; an embedded server is started if it does not run. From one node of a
            Cluster all others are found.
        namespace: whose keys are tested, and whose publishing rate is measured.
        node: whose stage is tested.
        wanted: the roles that this user should have.
        seconds: duration of the measurement.

    Raises:
        ConfigError, EmbeddedError: the URL is invalid; the embedded server does not start.
    """
    real, attachment = await asyncio.to_thread(attached, url)
    asked = Facts(redacted(real), wanted=tuple(wanted), namespace=namespace, node=node)
    try:
        return await _surveyed(real, asked, seconds)
    finally:
        if attachment is not None:
            await asyncio.to_thread(attachment.close)


async def _surveyed(url: str, asked: Facts, seconds: float) -> Survey:
    place = read_url(url)
    connections = Connections(url)
    asked = replace(asked, kind=place.kind)
    found = Survey(redacted(url), place.kind)
    try:
        if place.kind == "sentinel":
            found = replace(found, sentinels=await _sentinels(place))
        client = connections.commands()
        async with translated("connecting", connections.name):
            if place.kind == "single":
                if is_cluster(await allowed(client, "INFO", "server") or {}):
                    return await _surveyed(of_cluster(url), asked, seconds)
                shards, refusal = await made_as(client, asked.namespace)
                server = await examine(client, url, asked, shards)
                if refusal:
                    # Nothing is read of a namespace whose form is not known.
                    return replace(found, servers=(server,), refusal=refusal)
                rate = sum(await rates(client, asked.namespace, shards, seconds))
                heartbeat, max_age = await rhythm(client, asked.namespace, shards)
                server = replace(server, published_bytes_per_s=rate)
                return replace(found, servers=(server,), heartbeat_s=heartbeat, max_age_s=max_age)
            if place.kind == "cluster":
                expected = await _nodes(connections, is_tls=url.startswith("rediss"))
            else:
                expected = await _watched(found.sentinels, connections)
        servers = [replace(asked, at=at, **known) for at, known in expected.items()]
        examined = await _all(place, servers, connections, seconds)
        heartbeat = max_age = 0.0
        try:
            shards, refusal = await made_as(client, asked.namespace)
            found = replace(found, refusal=refusal)
            if not refusal:
                heartbeat, max_age = await rhythm(client, asked.namespace, shards)
        except (BackendError, RedisError, OSError):
            pass
        return replace(found, servers=examined, heartbeat_s=heartbeat, max_age_s=max_age)
    except BackendError as error:
        return replace(found, unreachable=str(error))
    finally:
        await connections.close()


async def _all(
    place: RedisURL, expected: Sequence[Facts], connections: Connections, seconds: float
) -> tuple[Facts, ...]:
    """Return the facts of each server, with its publishing rate."""
    namespace = expected[0].namespace
    shards, published = 1, Counter[str]()
    try:
        client = connections.commands()
        async with translated("measuring", connections.name):
            shards, refusal = await made_as(client, namespace)
            found_rates = [] if refusal else await rates(client, namespace, shards, seconds)
            for shard, rate in enumerate(found_rates):
                meta = ShardKeys.of(namespace, shard, shards).meta
                published[str(await connections.directory.owner(meta))] += int(rate)
    except BackendError:
        # Without owners there is no rate; the cause shows in the facts of the servers.
        pass
    found = await asyncio.gather(*(_one(place, one, shards) for one in expected))
    return tuple(
        # After a failover a replica publishes as much as its primary.
        replace(one, published_bytes_per_s=float(published[one.primary or one.at]))
        for one in found
    )


async def _one(place: RedisURL, expected: Facts, shards: int) -> Facts:
    url = place.node_url(address(expected.at))
    connections = Connections(url)
    try:
        async with translated("connecting", connections.name):
            return await examine(connections.commands(), url, expected, shards)
    except BackendError as error:
        return replace(expected, unreachable=str(error))
    finally:
        await connections.close()


def address(text: str) -> Address:
    """Parse the text of an address."""
    host, _, port = text.rpartition(":")
    return Address(host.strip("[]"), int(port))


# -- Cluster --------------------------------------------------------------------------------------


async def _nodes(connections: Connections, *, is_tls: bool) -> dict[str, dict[str, Any]]:
    """Return address -> (primary, slots) of each node, from the first node that answers."""
    failed: Exception = RedisConnectionError("no node owns any slot")
    for node in await connections.directory.owners():
        client = connections.subscriber(node)
        try:
            shards = await client.execute_command("CLUSTER", "SHARDS")  # type: ignore[no-untyped-call]
            ranges = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            failed = error
        else:
            return _of_shards(shards, ranges, node.host if node else "", is_tls=is_tls)
    raise failed


def _of_shards(
    shards: list[Any], ranges: list[Any], host: str, *, is_tls: bool
) -> dict[str, dict[str, Any]]:
    # The slots in SHARDS do not suffice: Redis 8 lists none there of a primary that failed.
    owned: dict[bytes, list[tuple[int, int]]] = {}
    for first, last, (_, _, owner, *_), *_ in ranges:
        owned.setdefault(owner, []).append((first, last))
    found: dict[str, dict[str, Any]] = {}
    for shard in map(_named, shards):
        nodes, slots = {}, {}
        for node in map(_named, shard["nodes"]):
            named = next(
                (
                    name.decode()
                    for name in (node.get("endpoint"), node.get("ip"))
                    if name and name != b"?"
                ),
                # An empty host means the node that answered.
                host,
            )
            port = node.get("tls-port" if is_tls else "port") or node.get("port", 0)
            at = str(Address(named, int(port)))
            nodes[at] = node["role"] == b"master"
            slots[at] = tuple(owned.get(node["id"], ()))
        primary = next((at for at, is_primary in nodes.items() if is_primary), "?")
        for at, is_primary in nodes.items():
            found[at] = {"primary": "" if is_primary else primary, "slots": slots[at]}
    return found


# -- Sentinels ------------------------------------------------------------------------------------


async def _watched(
    sentinels: Sequence[SentinelFacts], connections: Connections
) -> dict[str, dict[str, Any]]:
    """Return address -> (primary) of each server, as the sentinels report."""
    answering = [one for one in sentinels if one.unreachable is None]
    if not answering:
        # Raises the reason.
        await connections.directory.owner(None)
    primary = Counter(one.primary for one in answering).most_common(1)[0][0]
    replicas = dict.fromkeys(at for one in answering for at in one.replicas)
    return {primary: {}} | {at: {"primary": primary} for at in replicas if at != primary}


async def _sentinels(place: RedisURL) -> tuple[SentinelFacts, ...]:
    """Return the facts of the sentinels in the URL, and of those that they know."""
    found: dict[str, SentinelFacts] = {}
    asked: set[Address] = set()
    waiting = list(place.seeds)
    while waiting:
        asked.update(waiting)
        answers = await asyncio.gather(*(_sentinel(place, one) for one in waiting))
        waiting = []
        others: dict[str, Address] = {}
        for name, facts, known in answers:
            found[name] = facts
            others |= known
        waiting = [at for name, at in others.items() if name not in found and at not in asked]
    return tuple(found.values())


async def _sentinel(place: RedisURL, at: Address) -> tuple[str, SentinelFacts, dict[str, Address]]:
    """Return (id, or its address if it does not answer; facts; id -> address of the others)."""
    connections = Connections(place.sentinel_url(at))
    client = connections.commands()

    async def ask(*words: str) -> Any:
        return await client.execute_command("SENTINEL", *words)  # type: ignore[no-untyped-call]

    try:
        async with translated("asking a sentinel", connections.name):
            name = (await ask("MYID")).decode()
            primary = _texts(await ask("MASTER", place.service))
            others = [_texts(one) for one in await ask("SENTINELS", place.service)]
            replicas = [_texts(one) for one in await ask("REPLICAS", place.service)]
            trouble = ""
            try:
                await ask("CKQUORUM", place.service)
            except NoPermissionError:
                pass
            except ResponseError as error:
                trouble = str(error)
    except BackendError as error:
        return str(at), SentinelFacts(str(at), unreachable=str(error)), {}
    finally:
        await connections.close()
    facts = SentinelFacts(
        str(at),
        primary=str(_at(primary)),
        flags=primary["flags"],
        quorum=int(primary["quorum"]),
        others=len(others),
        replicas={str(_at(one)): one["flags"] for one in replicas},
        trouble=trouble,
    )
    return name, facts, {one["runid"]: _at(one) for one in others}


def _at(reply: Mapping[str, str]) -> Address:
    return Address(reply["ip"], int(reply["port"]))


def _named(flat: list[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _texts(flat: list[bytes]) -> dict[str, str]:
    return {name: value.decode() for name, value in _named(flat).items()}
