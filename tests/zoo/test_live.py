"""What the zoo builds, in a real Triton: it loads, and answers what the same file answers in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tokenizers import Tokenizer

from embedded.launcher import serving
from gateway.catalog import Catalog, Source, read_card
from gateway.settings import Settings
from tests.zoo.checkpoints import save_image_model, save_marian, save_text_model
from zoo.adding import describe
from zoo.build import Builder
from zoo.recipes import write_recipe
from zoo.runtime import load_runner
from zoo.validate import sample_inputs

pytestmark = [pytest.mark.live, pytest.mark.slow]

RECIPES = Path(__file__).parents[2] / "model_repository"
STARTERS = ("identity", "digits", "topics-zh")
ADDED = {"tiny-bert": "question-answering", "tiny-vit": "image-classification", "tiny-opus": "translation"}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Starter models that build in a moment, and one checkpoint of each kind of added model."""
    checkpoints, repository = tmp_path_factory.mktemp("checkpoints"), tmp_path_factory.mktemp("models")
    save_text_model(checkpoints / "tiny-bert", "questions")
    save_image_model(checkpoints / "tiny-vit", "vit")
    save_marian(checkpoints / "tiny-opus")
    for name in STARTERS:
        (repository / name).mkdir()
        shutil.copy(RECIPES / name / "model.yaml", repository / name)
    for name, task in ADDED.items():
        (repository / name).mkdir()
        recipe = describe(name, Source(kind="local", name=str(checkpoints / name)), task)
        write_recipe(repository / name / "model.yaml", recipe)
    builder = Builder(Settings())
    for name in (*STARTERS, *ADDED):
        builder.build(read_card(repository / name))
    return Catalog.load(repository)


@pytest.fixture(scope="module")
def client(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    """A client of a Triton that serves them all."""
    names = [card.name for card in catalog]
    repository = next(iter(catalog)).folder.parent
    with serving(repository, tmp_path_factory.mktemp("triton"), names) as server:
        client = triton.InferenceServerClient(server.grpc_url)
        yield client
        client.close()


@pytest.mark.parametrize("name", [*STARTERS, *ADDED])
def test_triton_answers_what_the_file_answers(catalog: Catalog, client, name: str) -> None:
    card = catalog.get(name)
    path = card.folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else None
    runner = load_runner(card.model_file, card.recipe)
    for rows, length in ((1, 16), (3, 8)):
        arrays = sample_inputs(card.recipe, rows, length, tokenizer)
        inputs = []
        for spec in card.recipe.inputs:
            tensor = triton.InferInput(spec.name, arrays[spec.name].shape, spec.datatype)
            tensor.set_data_from_numpy(arrays[spec.name])
            inputs.append(tensor)
        found = client.infer(name, inputs)
        for output, expected in runner.run(arrays).items():
            np.testing.assert_allclose(found.as_numpy(output), expected, atol=1e-3)


@pytest.mark.parametrize("name", [*STARTERS, *ADDED])
def test_triton_understood_the_configuration(catalog: Catalog, client, name: str) -> None:
    recipe = catalog.get(name).recipe
    config = client.get_model_config(name).config
    assert config.backend == {"onnx": "onnxruntime", "torchscript": "pytorch"}[recipe.format]
    assert config.max_batch_size == recipe.max_batch_size
    assert config.HasField("dynamic_batching")
    assert [tensor.name for tensor in config.input] == [spec.name for spec in recipe.inputs]


def test_classes_come_with_their_labels(client) -> None:
    image = triton.InferInput("image__0", [1, 28, 28, 1], "UINT8")
    image.set_data_from_numpy(np.zeros((1, 28, 28, 1), np.uint8))
    found = client.infer("digits", [image], outputs=[triton.InferRequestedOutput("logits__0", class_count=1)])
    value, number, label = found.as_numpy("logits__0")[0][0].decode().split(":")
    assert float(value) > -100
    assert number == label
