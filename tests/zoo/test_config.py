"""config.pbtxt, read with Triton's own schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from gateway.catalog import Catalog, ModelCard
from zoo.config import config_pbtxt, quote

CARDS = list(Catalog.load(Path(__file__).parents[2] / "model_repository"))


def parse(text: str):
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_recipe_makes_a_config_that_triton_understands(card: ModelCard) -> None:
    text = config_pbtxt(card.recipe)
    config = parse(text)
    assert config.name == card.name
    assert config.backend == {"onnx": "onnxruntime", "torchscript": "pytorch"}[card.recipe.format]
    assert config.default_model_filename == card.model_file.name
    assert config.max_batch_size == card.recipe.max_batch_size
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        (spec.name, list(spec.shape)) for spec in card.recipe.inputs
    ]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [
        (spec.name, list(spec.shape)) for spec in card.recipe.outputs
    ]
    assert config.instance_group[0].count == card.recipe.instances.count
    assert "python" not in text.lower()


def test_the_batcher_has_no_queue_policy_so_that_it_prefetches(make_recipe) -> None:
    config = parse(config_pbtxt(make_recipe(batching={"max_queue_delay_us": 50})))
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert config.dynamic_batching.max_queue_delay_microseconds == 50
    assert not config.dynamic_batching.priority_levels


def test_options_of_a_recipe_reach_the_config(make_recipe) -> None:
    config = parse(
        config_pbtxt(
            make_recipe(
                response_cache=True,
                parameters={"intra_op_thread_count": "2"},
                instances={"count": 3, "kind": "KIND_CPU"},
                batching={"preferred_batch_sizes": [4, 8]},
                inputs=[{"name": "TEXT", "datatype": "BYTES", "shape": [1], "optional": True}],
                outputs=[{"name": "scores", "datatype": "FP32", "shape": [2]}],
                labels=["no", "yes"],
            )
        )
    )
    assert config.response_cache.enable
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert config.input[0].optional
    assert config.input[0].data_type == model_config_pb2.TYPE_STRING
    assert config.output[0].label_filename == "labels.txt"
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.version_policy.latest.num_versions == 1


@pytest.mark.parametrize("fields", [{"batching": {"enabled": False}}, {"max_batch_size": 1}])
def test_nothing_is_batched_where_nothing_can_be(make_recipe, fields) -> None:
    assert not parse(config_pbtxt(make_recipe(**fields))).HasField("dynamic_batching")


def test_strings_are_escaped() -> None:
    config = parse(f"name: {quote(chr(34) + 'a' + chr(92) + chr(10) + 'ü')}")
    assert config.name == '"a\\\nü'
    with pytest.raises(ValueError, match="control character"):
        quote("a\0b")
