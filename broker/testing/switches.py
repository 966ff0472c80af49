"""The switches of a fault proxy. No I/O; every one may be set from any thread at any time."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Direction:
    """What is wrong in one direction.

    Attributes:
        delay: seconds that whatever arrives together is held back.
        stall: bytes are taken from the sender as far as buffers go, and never handed on: with both
            directions stalled the link is half open.
        split: most bytes that are written at once; 0 for no limit.
    """

    delay: float = 0.0
    stall: bool = False
    split: int = 0


@dataclass(slots=True)
class Loss:
    """Which requests, or replies to them, shall not arrive.

    Attributes:
        command: name of the command in capitals, for example `EVALSHA`; empty for any.
        containing: bytes that the request must contain.
        times: how many are still to be lost.
        every: only each n-th request that fits.
        after: so many that fit get through first.
        seen: requests that fitted so far.
    """

    command: bytes
    containing: bytes
    times: int
    every: int = 1
    after: int = 0
    seen: int = 0

    def takes(self, name: bytes, request: bytes) -> bool:
        """Tell whether this request is to be hit, and count it if so."""
        if self.times <= 0 or self.command not in (b"", name) or self.containing not in request:
            return False
        self.seen += 1
        if self.seen <= self.after or (self.seen - self.after) % self.every:
            return False
        self.times -= 1
        return True


@dataclass(slots=True)
class Faults:
    """Everything that can be wrong with the link.

    Attributes:
        to_server: requests.
        to_client: replies and pub/sub messages.
        refuse: new connections are reset at once.
        drop_messages: share (0 to 1) of pub/sub messages that vanish.
        repeat_messages: share that arrives twice.
        reorder_messages: share that arrives after the one behind it.
        lost_replies: see `lose_replies`.
        lost_requests: see `lose_requests`.
    """

    to_server: Direction = field(default_factory=Direction)
    to_client: Direction = field(default_factory=Direction)
    refuse: bool = False
    drop_messages: float = 0.0
    repeat_messages: float = 0.0
    reorder_messages: float = 0.0
    lost_replies: list[Loss] = field(default_factory=list)
    lost_requests: list[Loss] = field(default_factory=list)

    def lose_replies(
        self, command: str = "", *, times: int = 1, every: int = 1, containing: bytes = b""
    ) -> None:
        """Let the server run the next such commands, then break the connection before the reply.

        Args:
            command: name of the command; empty for any but subscriptions.
            times: how many replies are lost.
            every: only each n-th that fits.
            containing: bytes that the request must contain, such as a script's hash.
        """
        self.lost_replies.append(Loss(command.upper().encode(), containing, times, every))

    def lose_requests(
        self, command: str = "", *, times: int = 1, after: int = 0, containing: bytes = b""
    ) -> None:
        """Swallow the next such commands: the server never sees them, nobody answers.

        Their connection is deaf from then on, so that no later answer is taken for theirs.

        Args:
            command: name of the command; empty for any but subscriptions.
            times: how many are swallowed.
            after: so many that fit get through first.
            containing: bytes that the request must contain, such as a script's hash.
        """
        self.lost_requests.append(Loss(command.upper().encode(), containing, times, 1, after))

    def stall(self, *, is_on: bool = True) -> None:
        """Make the links half open, both ways; those there are and those to come."""
        self.to_server.stall = self.to_client.stall = is_on

    def heal(self) -> None:
        """Switch everything off."""
        self.refuse = False
        self.drop_messages = self.repeat_messages = self.reorder_messages = 0.0
        self.lost_replies.clear()
        self.lost_requests.clear()
        for direction in (self.to_server, self.to_client):
            direction.delay, direction.stall, direction.split = 0.0, False, 0
