"""A TCP server that gives one answer to everything."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def talker(answer: bytes | None) -> Iterator[str]:
    """A TCP server that is no Redis: it answers every command with this; None: it hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            client: socket.socket = self.request
            while answer is not None and (asked := client.recv(1 << 16)):
                client.sendall(answer * asked.count(b"*"))

    class TalkServer(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with TalkServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        finally:
            server.shutdown()
            thread.join()
