"""A model that remembers: it writes down every row before it computes it, so that executions can be counted
after a SIGKILL too, when Triton's own counters are gone.

INPUT is (number, milliseconds), OUTPUT 3 * number + 1. A number below zero fails.
"""

import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self._file = os.open(os.environ["RECORDER_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def execute(self, requests):
        if len(requests) == 1 and requests[0].is_cancelled():  # without dynamic batching Triton leaves it to the model
            code = pb_utils.TritonError.CANCELLED
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", code))]
        inputs = [pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy() for request in requests]
        rows = np.concatenate(inputs)
        os.write(self._file, "".join(f"{int(number)}\n" for number in rows[:, 0]).encode())
        time.sleep(float(rows[:, 1].max()) / 1000)
        responses = []
        for values in inputs:
            if (values[:, 0] < 0).any():
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("a negative number")))
                continue
            output = pb_utils.Tensor("OUTPUT", values[:, :1] * 3 + 1)
            responses.append(pb_utils.InferenceResponse([output]))
        return responses

    def finalize(self):
        os.close(self._file)
