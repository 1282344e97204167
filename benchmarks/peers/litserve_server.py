"""LitServe with its own batching: ``max_batch_size`` and ``batch_timeout``, several workers, as its guides have it.

Texts come as JSON, pictures as the file of a form. (LitServe reads the type of ``request`` from the signature, so
annotations are not postponed here.)
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined,misc"
# (installed in an environment of its own)

import argparse
import os
from pathlib import Path
from typing import Annotated, Any

import litserve
from fastapi import File

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.ways import Way

WAY = Way.of_environment()


class TaskAPI(litserve.LitAPI):
    """One model."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder

    def setup(self, device: str) -> None:  # noqa: ARG002 - the base class's signature
        """In each worker."""
        self.onnx = OnnxTask(self._folder, threads=WAY.threads)

    def predict(self, x: Any) -> Any:
        """One run: of a list of rows, or of one where nothing is batched."""
        return self.onnx.infer(x) if isinstance(x, list) else self.onnx.infer([x])[0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Rows of one batch; padding is done in ``infer``."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Back to single answers."""
        return output

    def encode_response(self, output: Any) -> Any:
        """The task's answer."""
        return self.onnx.encode(output)


class Texts(TaskAPI):
    """``{"inputs": text}``."""

    def decode_request(self, request: dict[str, str]) -> Any:
        """Token ids."""
        return self.onnx.decode_text(request["inputs"])


class Pictures(TaskAPI):
    """The file ``request`` of a form."""

    def decode_request(self, request: Annotated[bytes, File()]) -> Any:
        """Pixels."""
        return self.onnx.decode(request)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    kind = Texts if OnnxTask(arguments.folder).text else Pictures
    api = kind(arguments.folder, max_batch_size=WAY.batch, batch_timeout=WAY.wait_s, api_path="/predict")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=WAY.workers, healthcheck_path="/ready",
        fast_queue=os.environ.get("LITSERVE_FAST_QUEUE") == "1",
    )  # fmt: skip
    server.run(
        host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False,
        num_api_servers=int(os.environ.get("LITSERVE_API_SERVERS", "1")),
    )  # fmt: skip


if __name__ == "__main__":
    main()
