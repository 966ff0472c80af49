"""A test kit: inject faults between a program and Redis, record histories, and validate them.

`FaultProxy` is a proxy in front of Redis that injects faults. `Journal` and `read_journal` store
histories in files that survive a SIGKILL; `broker.testing.validators` has one pure function for
each promise.
"""

from broker.testing.journal import Journal, read_journal
from broker.testing.lineage import Lineage
from broker.testing.proxy import FaultProxy

__all__ = ["FaultProxy", "Journal", "Lineage", "read_journal"]
