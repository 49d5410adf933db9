"""A server on loopback that speaks as much of the Hugging Face hub's API as its client needs to upload a model: small
files in the commit, large ones by LFS before it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_LARGE = (".safetensors", ".gguf")


class FakeHub:
    """The server; a context manager.

    Attributes:
        token: the only one that it takes.
        repos: id → whether it is private.
        files: repository → name → content.
        seen: method and path of each request.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
            hub.large[self.path.rpartition("/")[2]] = body
            self._send(200, {})

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, body: bytes) -> None:
            path = self.path.partition("?")[0]
            hub.seen.append((self.command, path))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._send(401, {"error": "Invalid credentials in Authorization header"})
            elif path == "/api/whoami-v2":
                self._send(200, {"type": "user", "name": "someone"})
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.repos.setdefault(name, asked.get("visibility") == "private")
                self._send(200, {"url": f"{hub.url}/{name}", "id": name})
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif path.endswith("/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self._send(200, {"transfer": "basic", "objects": objects})
            elif "/preupload/" in path:
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(_LARGE) else "regular",
                     "shouldIgnore": False} for f in json.loads(body)["files"]
                ]  # fmt: skip
                self._send(200, {"files": modes})
            elif "/commit/" in path:
                self._commit(path, [json.loads(line) for line in body.splitlines()])
            else:
                self._send(404, {"error": f"no {path} here"})

        def _commit(self, path: str, lines: list[dict[str, Any]]) -> None:
            repo = "/".join(path.split("/")[3:5])
            files = hub.files.setdefault(repo, {})
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
            oid = "0" * 40
            self._send(200, {"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True})

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
