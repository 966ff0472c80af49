"""The asyncio faces: same names, same promises, `async with` and `await`."""

from broker.aio.inspector import Inspector
from broker.aio.producer import Producer
from broker.aio.replica import Replica

__all__ = ["Inspector", "Producer", "Replica"]
