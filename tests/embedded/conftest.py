"""One Triton for all tests of this folder; each test loads the models it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc

from embedded.errors import WheelNotFoundError
from embedded.launcher import EmbeddedTriton, serving
from embedded.layout import TritonWheel, find_wheel
from tests.embedded.client import ModelClient
from tests.embedded.repository import build


@pytest.fixture(scope="session")
def wheel() -> TritonWheel:
    """The installed wheel; without it the test skips, under CI it fails."""
    try:
        return find_wheel()
    except WheelNotFoundError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, wheel: TritonWheel) -> Path:
    """The folder of small models."""
    return build(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A running server without models, whose backends choose their threads themselves.

    It takes complete configurations only: completing takes one more stub, and a second, for each model.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("OMP_NUM_THREADS", raising=False)
        strict = ["--disable-auto-complete-config"]
        with serving(repository, tmp_path_factory.mktemp("triton"), extra_arguments=strict) as server:
            yield server


@pytest.fixture
def model(triton: EmbeddedTriton) -> Iterator[Callable[[str], ModelClient]]:
    """Load a model, once per session, and talk to it."""
    with tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client:

        def load(name: str) -> ModelClient:
            if name not in triton.models:
                triton.load(name)
            return ModelClient(client, name)

        yield load
