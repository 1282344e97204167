"""A hub with the two routes that `huggingface_hub` asks for a snapshot, on a free port, from a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(models: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve each ``models/<owner>/<name>``; yields the endpoint's URL and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            asked.append(self.path)
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.send_model("/".join(parts[2:4]))
            elif len(parts) > 4 and parts[2] == "resolve":
                self.send_file(models / parts[0] / parts[1] / "/".join(parts[4:]))
            else:
                self.refuse("EntryNotFound")

        def send_model(self, name: str) -> None:
            folder = models / name
            if not folder.is_dir():
                self.refuse("RepoNotFound")
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
            body = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            self.send(json.dumps(body).encode(), {"Content-Type": "application/json"})

        def send_file(self, path: Path) -> None:
            if not path.is_file():
                self.refuse("EntryNotFound")
                return
            content = path.read_bytes()
            self.send(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

        def refuse(self, code: str) -> None:
            self.send(b"{}", {"X-Error-Code": code}, status=404)

        def send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
