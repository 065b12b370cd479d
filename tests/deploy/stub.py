"""A stub HTTP server that records its requests, counts its connections and answers with given statuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Stub:
    """`statuses` maps paths to the status they are answered with; the default is 200."""

    url: str = ""
    connections: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)


@contextmanager
def stub() -> Iterator[Stub]:
    state = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(state.statuses.get(self.path, 200))
            self.send_header("content-length", "5")
            self.send_header("retry-after", "7")
            self.end_headers()
            self.wfile.write(b"mine\n")

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield state
        finally:
            server.shutdown()
            serving.join()
