"""A hub with the routes that `huggingface_hub` asks for a snapshot, on a free port, from a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves each ``models/<owner>/<name>``; ``asked`` collects the paths."""

    def __init__(self, models: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = models
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.send_model("/".join(parts[2:4]), tree="tree" in parts)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.send_content(self.server.models / parts[0] / parts[1] / "/".join(parts[4:]))
        else:
            self.send(b"{}", {"X-Error-Code": "EntryNotFound"}, status=404)

    def send_model(self, name: str, *, tree: bool) -> None:
        folder = self.server.models / name
        if not folder.is_dir():
            self.send(b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)
            return
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        body: Any = {"id": name, "sha": COMMIT, "tags": [], "siblings": [{"rfilename": file} for file in files]}
        if tree:
            sizes = {file: path.stat().st_size for file, path in files.items()}
            body = [{"type": "file", "path": file, "size": size, "oid": "0"} for file, size in sizes.items()]
        self.send(json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send_content(self, path: Path) -> None:
        if not path.is_file():
            self.send(b"{}", {"X-Error-Code": "EntryNotFound"}, status=404)
            return
        content = path.read_bytes()
        self.send(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing on stderr."""


@contextmanager
def serve_hub(models: Path) -> Iterator[tuple[str, list[str]]]:
    """Run a :class:`Hub`; yields its URL and the paths it was asked for."""
    with Hub(models) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.asked
        finally:
            server.shutdown()
            thread.join()
