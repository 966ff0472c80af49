"""The server behind `embedded://`: started on first use, shared, stopped with its last user.

    attach()  --one connection per attachment-->  keeper  --owns-->  Valkey, flush workers

Invariants, referred to by number in the modules:

1. An open connection to the keeper means that the user is alive. The kernel closes it when the
   process dies, so nothing polls, and nothing outlives its last user.
2. `keeper.lock` in the directory is locked while the keeper *or its server* runs: both hold the
   same open file. Only the holder of the lock creates or removes sockets there.
3. An attachment is valid once the keeper has replied. A keeper that stops closes the connections
   that it has not replied to, and their processes try again; so nobody attaches to a stopping
   server.
4. Whose connection ends attaches again, in the same directory: a killed keeper is replaced by the
   processes that need it.
"""

from broker.embedded.client import Attachment, attach
from broker.embedded.url import parse_embedded_url

__all__ = ["Attachment", "attach", "parse_embedded_url"]
