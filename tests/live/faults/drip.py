"""A model that answers each request with many parts: INPUT is (number, milliseconds), part i is number + i."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils

PARTS = 400


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            number, milliseconds = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            sender = request.get_response_sender()
            for part in range(PARTS):
                if sender.is_cancelled():
                    break
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([number + part]))]))
                time.sleep(milliseconds / 1000)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
