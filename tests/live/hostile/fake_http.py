"""The HTTP face of :class:`~tests.live.hostile.fake_triton.FakeTriton`: inferences in the binary tensor extension."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
}  # fmt: skip


class Refused(Exception):
    """The answer is an error: a gRPC status and Triton's text."""


class HttpContext:
    """What a handler may ask of its call, under the names that grpcio has for it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def is_active(self) -> bool:
        """Whether the caller is still there."""
        with contextlib.suppress(OSError):
            readable, _, _ = select.select([self._connection], [], [], 0)
            return not readable or bool(self._connection.recv(1, socket.MSG_PEEK))
        return False

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        """End the call with an error."""
        raise Refused(code, text)


class HttpFace(ThreadingHTTPServer):
    """Serves ``infer`` on a free port. Every request is told to ``count``, by its method or path."""

    daemon_threads = True

    def __init__(self, infer: Callable[[Any, Any], Any], count: Callable[[str], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.infer, self.count = infer, count
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpFace

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        parts = self.path.split("/")
        if parts[:3] != ["", "v2", "models"] or parts[-1] != "infer":
            self.server.count(self.path)
            self.send_error(404)
            return
        self.server.count("ModelInfer")
        message = _message(parts[3], body, int(self.headers["inference-header-content-length"]))
        try:
            reply = self.server.infer(message, HttpContext(self.connection))
        except Refused as refused:
            code, text = refused.args
            self._answer(STATUSES[code], json.dumps({"error": text}).encode())
            return
        if isinstance(reply, bytes):  # no protocol at all
            self.wfile.write(reply)
            self.close_connection = True
            return
        head, data = _encoded(reply)
        self._answer(200, head + data, len(head))

    def do_GET(self) -> None:
        self.server.count(self.path)
        self.send_error(404)

    def _answer(self, status: int, body: bytes, head_length: int | None = None) -> None:
        self.send_response(status)
        if head_length is not None:
            self.send_header("Inference-Header-Content-Length", str(head_length))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


def _message(model: str, body: bytes, head_length: int) -> Any:
    head = json.loads(body[:head_length])
    message, offset = pb.ModelInferRequest(model_name=model, id=head.get("id", "")), head_length
    for item in head["inputs"]:
        end = offset + item["parameters"]["binary_data_size"]
        message.inputs.add(name=item["name"], datatype=item["datatype"], shape=item["shape"])
        message.raw_input_contents.append(body[offset:end])
        offset = end
    assert offset == len(body)
    return message


def _encoded(reply: Any) -> tuple[bytes, bytes]:
    contents = reply.raw_output_contents
    outputs = [
        {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
            "parameters": {"binary_data_size": len(contents[at]) if at < len(contents) else 0},
        }
        for at, output in enumerate(reply.outputs)
    ]
    head = {"model_name": reply.model_name, "model_version": reply.model_version, "id": reply.id, "outputs": outputs}
    return json.dumps(head).encode(), b"".join(contents)
