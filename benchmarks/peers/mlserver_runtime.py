"""MLServer with its adaptive batching and a custom runtime, as its documentation has it."""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined,misc"
# (installed in an environment of its own)

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.ways import Way


class TaskRuntime(MLModel):
    """BYTES ``inputs`` ``[rows]`` to BYTES ``answers`` ``[rows]``, each a JSON text."""

    async def load(self) -> bool:
        """Once a worker."""
        self._onnx = OnnxTask(Path(os.environ["PEER_MODEL"]), threads=Way.of_environment().threads)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch."""
        texts = StringCodec.decode_input(payload.inputs[0])
        answers = await asyncio.to_thread(self._answers, texts)
        output = StringCodec.encode_output("answers", answers)
        return InferenceResponse(model_name=self.name, outputs=[output])

    def _decode(self, value: str) -> Any:
        return self._onnx.decode_text(value) if self._onnx.text else self._onnx.decode(base64.b64decode(value))

    def _answers(self, texts: list[str]) -> list[str]:
        rows = [self._decode(value) for value in texts]
        return [json.dumps(self._onnx.encode(row)) for row in self._onnx.infer(rows)]
