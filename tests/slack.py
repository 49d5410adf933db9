"""A local HTTP server in the place of Slack, and of whatever else is posted to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Slack:
    """What was posted; `status` is what it answers, after `delay` seconds."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}/services/T0/B0/hook-of-the-test"
        self.url = f"http://{self.address}"
        self.posts: list[dict[str, Any]] = []
        self.status, self.delay = 200, 0.0

    def texts(self) -> list[str]:
        """The posts, each with all that its blocks say."""
        return [json.dumps(post, ensure_ascii=False) for post in self.posts]

    def until(self, number: int, seconds: float = 30) -> list[dict[str, Any]]:
        """The posts once there are so many."""
        limit = time.monotonic() + seconds
        while len(self.posts) < number and time.monotonic() < limit:
            time.sleep(0.05)
        assert len(self.posts) >= number, f"{len(self.posts)} of {number} posts came: {self.texts()}"
        return self.posts


@contextmanager
def listening() -> Iterator[Slack]:
    """A Slack for the `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            slack.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            time.sleep(slack.delay)
            self.send_response(slack.status)
            self.end_headers()
            self.wfile.write(b"ok" if slack.status == 200 else b"no_service")

        def log_message(self, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    slack = Slack(server.server_port)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield slack
    finally:
        server.shutdown()
        server.server_close()
