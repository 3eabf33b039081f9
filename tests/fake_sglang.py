"""A stand-in for SGLang's HTTP server: health, and a chat that streams three tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# The events of an answer as SGLang 0.5.21 sends them: role, text, end, token ids, usage.
TOKENS = (11, 12)
EVENTS: tuple[dict[str, Any], ...] = (
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "It is "}}]},
    {"choices": [{"index": 0, "delta": {"content": "119."}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": 2}]},
    {"choices": [], "sglext": {"output_ids": [[*TOKENS, 2]]}},
    {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 3}},
)


class FakeSglang:
    """What was asked, and what is answered: `events`, or an error with `status`."""

    def __init__(self, events: Sequence[dict[str, Any]] = EVENTS, status: int = 200) -> None:
        self.events = events
        self.status = status
        self.bodies: list[dict[str, Any]] = []

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The URL of a running server."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_POST(self) -> None:
                fake.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(fake.status)
                self.end_headers()
                if fake.status != 200:
                    self.wfile.write(b"too long")
                    return
                for event in fake.events:
                    self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                self.wfile.write(b"data: [DONE]\n\n")

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler
