"""The switches of a fault proxy; each may be set from any thread at any time. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Direction:
    """Faults in one direction.

    Attributes:
        delay: seconds by which data is delayed.
        stall: data is read from the sender until buffers are full, but not forwarded; with both
            directions stalled the connection is half open.
        split: maximum bytes per write; 0 for no limit.
    """

    delay: float = 0.0
    stall: bool = False
    split: int = 0


@dataclass(slots=True)
class Loss:
    """Which requests or replies to drop.

    Attributes:
        command: name of the command in capitals, for example `EVALSHA`; empty for any.
        containing: bytes that the request must contain.
        times: how many are still to be dropped.
        every: drop only each n-th matching request.
        after: number of matching requests to forward first.
        seen: matching requests so far.
    """

    command: bytes
    containing: bytes
    times: int
    every: int = 1
    after: int = 0
    seen: int = 0

    def matches(self, name: bytes, request: bytes) -> bool:
        """Whether to drop this request, or the reply to it; counts it if so."""
        if self.times <= 0 or self.command not in (b"", name) or self.containing not in request:
            return False
        self.seen += 1
        if self.seen <= self.after or (self.seen - self.after) % self.every:
            return False
        self.times -= 1
        return True


@dataclass(slots=True)
class Faults:
    """All faults of a connection.

    Attributes:
        to_server: requests.
        to_client: replies and pub/sub messages.
        refuse: new connections are reset at once.
        drop_messages: share (0 to 1) of pub/sub messages to drop.
        repeat_messages: share to deliver twice.
        reorder_messages: share to deliver after the next message.
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
        """Let the server execute the next such commands, and close the connection before the reply.

        Args:
            command: name of the command; empty for any but subscriptions.
            times: how many replies are lost.
            every: only each n-th matching command.
            containing: bytes that the request must contain, such as a script's hash.
        """
        self.lost_replies.append(Loss(command.upper().encode(), containing, times, every))

    def lose_requests(
        self, command: str = "", *, times: int = 1, after: int = 0, containing: bytes = b""
    ) -> None:
        """Drop the next such commands: the server does not receive them, and nothing is answered.

        All later requests of the connection are dropped too, so that no reply is mismatched.

        Args:
            command: name of the command; empty for any but subscriptions.
            times: how many are dropped.
            after: number of matching commands to forward first.
            containing: bytes that the request must contain, such as a script's hash.
        """
        self.lost_requests.append(Loss(command.upper().encode(), containing, times, 1, after))

    def stall(self, *, is_on: bool = True) -> None:
        """Make all connections half open, in both directions, present and future ones."""
        self.to_server.stall = self.to_client.stall = is_on

    def heal(self) -> None:
        """Switch all faults off."""
        self.refuse = False
        self.drop_messages = self.repeat_messages = self.reorder_messages = 0.0
        self.lost_replies.clear()
        self.lost_requests.clear()
        for direction in (self.to_server, self.to_client):
            direction.delay, direction.stall, direction.split = 0.0, False, 0
