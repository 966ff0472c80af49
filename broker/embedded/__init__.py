"""The server behind `embedded://`: started when first needed, shared, gone when nobody is left.

    attach()  --one connection per attachment-->  keeper  --owns-->  Valkey, flush workers

Invariants, numbered here and referred to by number in the modules:

1. The connection to the keeper is the liveness. The kernel closes it when its process dies, so
   nobody has to poll, and nothing outlives its last user.
2. `keeper.lock` in the directory is locked as long as the keeper *or its server* lives: both
   hold the same open file. Only the holder of the lock creates or removes sockets there.
3. An attachment counts once the keeper has replied. A keeper that stops closes what it has not
   replied to, and the attaching process then tries again; so nobody is attached to a dying server.
"""

from broker.embedded.client import Attachment, attach
from broker.embedded.url import parse_embedded_url

__all__ = ["Attachment", "attach", "parse_embedded_url"]
