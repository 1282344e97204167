"""LitServe with its own batching: ``max_batch_size`` and ``batch_timeout``, several workers, as its guides have it."""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined,misc"
# (installed in an environment of its own)

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import litserve

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.ways import Way

BATCH_TIMEOUT_S = 0.005


class TaskAPI(litserve.LitAPI):
    """One model."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder

    def setup(self, device: str) -> None:  # noqa: ARG002 - the base class's signature
        """In each worker."""
        self.onnx = OnnxTask(self._folder, threads=Way.of_environment().threads)

    def decode_request(self, request: dict[str, str]) -> Any:
        """The model's input of one request: ``{"inputs": text or base64}``."""
        return self.onnx.decode_value(request["inputs"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Rows of one batch; padding is done in ``infer``."""
        return inputs

    def predict(self, x: list[Any]) -> list[Any]:
        """One run."""
        return self.onnx.infer(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Back to single answers."""
        return output

    def encode_response(self, output: Any) -> Any:
        """The task's answer."""
        return self.onnx.encode(output)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    api = TaskAPI(arguments.folder, max_batch_size=32, batch_timeout=BATCH_TIMEOUT_S, api_path="/predict")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=Way.of_environment().workers, healthcheck_path="/ready"
    )
    server.run(
        host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False, num_api_servers=1
    )


if __name__ == "__main__":
    main()
