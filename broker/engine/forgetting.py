"""Forgets writers that were killed: their records, and with them their ids of tables."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from broker.backend.forgetting import Verdict, judge, writers_of
from broker.backend.session import Session
from broker.errors import BrokerError
from broker.protocol.names import ShardKeys

# A producer that lives writes its record again within its probe interval of 1 s.
ANSWER_S: Final = 5.0
# An age that the command waits for itself.
SHORT_AGE_S: Final = 60.0
# Milliseconds of the server's clock are cut off.
SLACK_S: Final = 0.002


async def forget_idle(
    url: str | None, namespace: str, age: float, *, answer_s: float = ANSWER_S
) -> list[str]:
    """Forget the writers that are gone; return what was done, a line for each kind and shard.

    A writer is forgotten if its record did not change for the age, nothing of it is pending, and
    its process does not answer. Redis does not record when a writer appended last. So the first
    call notes the records, and a call an age later forgets those that are the same; an age of up to
    a minute is waited for.

    A process that comes back after it was forgotten gets `FencedError` at its next write. So what
    it sent counts once, and what it had not sent is not written.

    Args:
        url: any supported URL.
        namespace: a validated name.
        age: seconds.
        answer_s: seconds that a process has to answer; producers look once a second.

    Raises:
        BrokerError: there is no such namespace.
        BackendError: Redis failed; call it again.
    """
    session = Session(url, namespace, None)
    try:
        await session.connect()
        if not await session.try_join():
            raise BrokerError(f"namespace {namespace!r} does not exist: nothing is to be forgotten")
        step = _Step(session, round(age * 1000), secrets.token_hex(4))
        asked = await step.ask()
        is_young = any({Verdict.NOTED, Verdict.WAITS} & {*one.values()} for one in asked.values())
        if age <= SHORT_AGE_S and is_young:
            await asyncio.sleep(age + SLACK_S)
            asked = await step.ask()
        if any(Verdict.ASKED in one.values() for one in asked.values()):
            await asyncio.sleep(answer_s)
        done: list[str] = []
        for number, (keys, verdicts) in enumerate(asked.items()):
            judged = verdicts | await step.forget(keys, verdicts)
            done += [f"shard {number}: {line}" for line in _told(judged, age)]
    finally:
        await session.close()
    return done


@dataclass(frozen=True, slots=True)
class _Step:
    """The steps of one command; `age_ms` and `asking` as for `judge`."""

    session: Session
    age_ms: int
    asking: str

    async def ask(self) -> dict[ShardKeys, dict[str, Verdict]]:
        """Note idle writers and ask them, in every shard."""
        found = {}
        for keys in self.session.keys:
            nodes = await writers_of(self.session.commands, keys)
            found[keys] = await self._judge(keys, nodes, "ask")
        return found

    async def forget(self, keys: ShardKeys, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Forget those of a shard that were asked and did not answer."""
        nodes = [node for node, one in verdicts.items() if one is Verdict.ASKED]
        return await self._judge(keys, nodes, "forget")

    async def _judge(
        self, keys: ShardKeys, nodes: Sequence[str], step: Literal["ask", "forget"]
    ) -> dict[str, Verdict]:
        commands = self.session.commands
        return await judge(commands, keys, nodes, step=step, age_ms=self.age_ms, asking=self.asking)


def _told(verdicts: Mapping[str, Verdict], age: float) -> list[str]:
    counts = Counter(verdicts.values())
    noted = counts[Verdict.NOTED]
    young = noted + counts[Verdict.WAITS]
    later = (
        f"with nothing pending are noted, {noted:,} of them now; a later run forgets those that "
        f"are the same {age:g} s after that"
    )
    told = [
        (counts[Verdict.FORGOTTEN], "are forgotten"),
        (counts[Verdict.LIVES], "are idle, but their processes live"),
        (young, later),
        (counts[Verdict.AHEAD], "stay, because their number is from after now"),
        (counts[Verdict.UNREAD], "cannot be read: run `statebroker repair`"),
    ]
    return [f"{count:,} writers {what}" for count, what in told if count]
