"""A test kit: break the way to Redis on purpose, record what happened, and judge the record.

`FaultProxy` stands between a program and its Redis. `Journal` and `read_journal` keep histories in
files that survive a SIGKILL; `broker.testing.validators` has one pure function for each promise.
"""

from broker.testing.journal import Journal, read_journal
from broker.testing.lineage import Lineage
from broker.testing.proxy import FaultProxy

__all__ = ["FaultProxy", "Journal", "Lineage", "read_journal"]
