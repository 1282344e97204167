"""Between the gateway's requests and the protocol's protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from gateway.types import InferenceRequest, InferenceResult, ParameterValue, Tensor


def set_parameters(target: Any, parameters: Mapping[str, ParameterValue]) -> None:
    """Write ``parameters`` into a protobuf map of ``InferParameter``."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


def get_parameters(source: Any) -> dict[str, ParameterValue]:
    """The plain values of a protobuf map of ``InferParameter``."""
    values: dict[str, ParameterValue] = {}
    for name, parameter in source.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            values[name] = getattr(parameter, kind)
    return values


def encode_request(request: InferenceRequest) -> pb.ModelInferRequest:
    """``request`` as a message with raw tensor contents."""
    message = pb.ModelInferRequest(model_name=request.model, model_version=request.version, id=request.id)
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(bytes(tensor.data))
    for name in request.outputs:
        message.outputs.add(name=name)
    if request.parameters:
        set_parameters(message.parameters, request.parameters)
    if request.priority:
        message.parameters["priority"].uint64_param = request.priority
    return message


def decode_response(message: pb.ModelInferResponse) -> InferenceResult:
    """Triton's answer. Raises ``ValueError`` if contents and outputs do not match in number."""
    if len(message.raw_output_contents) != len(message.outputs):
        raise ValueError(f"{len(message.raw_output_contents)} contents for {len(message.outputs)} outputs")
    outputs = tuple(
        Tensor(output.name, output.datatype, tuple(output.shape), data)
        for output, data in zip(message.outputs, message.raw_output_contents, strict=True)
    )
    parameters = get_parameters(message.parameters) if message.parameters else {}
    return InferenceResult(message.model_name, message.model_version, outputs, message.id, parameters)
