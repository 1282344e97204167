"""BYTES tensors as text, which is what ONNX strings and TorchScript's ``str`` are."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedded.backends.common.execution import InvalidInputError


def decode_text(name: str, array: Any) -> Any:
    """An array of ``str`` in the shape of ``array``, which holds ``bytes``.

    Raises :class:`InvalidInputError` naming the input where they are not UTF-8.
    """
    try:
        text = [value.decode("utf-8") for value in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"input {name!r} holds bytes that are not UTF-8 text") from error
    decoded = np.empty(array.size, np.object_)
    decoded[:] = text
    return decoded.reshape(array.shape)
