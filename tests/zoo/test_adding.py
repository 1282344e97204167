"""`tidegate models add`: recipes of checkpoints that `save_pretrained` wrote, and the builds they lead to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gateway.catalog import Recipe, Source, read_card
from gateway.settings import Settings
from tests.zoo.checkpoints import save_image_model, save_marian, save_text_model
from tests.zoo.hub import COMMIT, serve_hub
from zoo.adding import default_name, describe, image_preprocessing
from zoo.build import Builder
from zoo.checkpoints import download
from zoo.errors import SourceError
from zoo.recipes import write_recipe
from zoo.runtime import TaskRunner, load_runner

TASKS = {
    "classification": "text-classification",
    "distilbert": "text-classification",
    "roberta": "text-classification",
    "tokens": "token-classification",
    "questions": "question-answering",
    "embeddings": "feature-extraction",
    "cls": "feature-extraction",
    "vit": "image-classification",
    "resnet": "image-classification",
    "marian": "translation",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in TASKS:
        if kind in ("vit", "resnet"):
            save_image_model(folder / kind, kind)
        elif kind == "marian":
            save_marian(folder / kind)
        else:
            save_text_model(folder / kind, kind)
    return folder


def describe_local(folder: Path, task: str, **options) -> Recipe:
    return describe(folder.name, Source(kind="local", name=str(folder)), task, **options)


def test_recipes_say_what_the_checkpoint_says(checkpoints: Path) -> None:
    classifier = describe_local(checkpoints / "classification", "text-classification")
    assert classifier.labels == ("bad", "good", "mixed")
    assert [spec.name for spec in classifier.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert classifier.outputs[0].shape == (3,)
    assert classifier.preprocessing.max_length == 48
    assert classifier.preprocessing.buckets == (16, 24, 32, 48)
    assert classifier.architecture == "BertForSequenceClassification"
    distilled = describe_local(checkpoints / "distilbert", "text-classification")
    assert [spec.name for spec in distilled.inputs] == ["input_ids", "attention_mask"]
    tokens = describe_local(checkpoints / "tokens", "token-classification")
    assert tokens.outputs[0].shape == (-1, 3)
    vectors = describe_local(checkpoints / "embeddings", "feature-extraction")
    assert [spec.shape for spec in vectors.outputs] == [(32,), (-1, 32)]
    straight = describe_local(checkpoints / "vit", "image-classification").preprocessing
    assert (straight.resize_shorter_side, straight.crop, straight.interpolation) == (None, (32, 32), "bilinear")
    cropped = describe_local(checkpoints / "resnet", "image-classification").preprocessing
    assert (cropped.resize_shorter_side, cropped.crop, cropped.interpolation) == (64, (56, 56), "bicubic")
    translator = describe_local(checkpoints / "marian", "translation")
    assert translator.format == "torchscript"
    assert translator.preprocessing.pad_id > 0


def test_labels_can_be_given(checkpoints: Path) -> None:
    folder = checkpoints / "classification"
    assert describe_local(folder, "text-classification", labels=("a", "b", "c")).labels == ("a", "b", "c")
    with pytest.raises(SourceError, match="2 labels were given, the checkpoint has 3 classes"):
        describe_local(folder, "text-classification", labels=("a", "b"))


def test_the_model_card_names_licence_and_languages(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "classification", tmp_path / "carded")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\n- de\n---\n# A model\n")
    recipe = describe_local(folder, "text-classification")
    assert (recipe.licence, recipe.languages) == ("mit", ("en", "de"))
    assert describe_local(checkpoints / "classification", "text-classification").licence == "unknown"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), TASKS.items())
def test_a_checkpoint_is_built_and_answers(
    checkpoints: Path, repository: Path, settings: Settings, kind: str, task: str
) -> None:
    folder = repository / kind
    folder.mkdir()
    recipe = describe_local(checkpoints / kind, task)
    write_recipe(folder / "model.yaml", recipe)
    card = Builder(settings).build(read_card(folder)).card
    assert card.built
    assert card.evidence.parity_max_abs_error <= recipe.parity.atol
    answer = TaskRunner(card, load_runner(card.model_file, recipe), settings).call(task, question(task))
    if task == "feature-extraction":
        assert answer.vectors.shape == (1, 32)
    else:
        assert len(answer.items) == 1
    if recipe.labels and task != "token-classification":
        assert {label.label for label in answer.items[0]} <= set(recipe.labels)


def question(task: str):
    if task == "question-answering":
        return {"question": "Where does the cat sit?", "context": "The cat sits on the mat. A dog runs in the park."}
    if task == "image-classification":
        return (Path(__file__).parents[2] / "zoo" / "pictures" / "chelsea.jpg").read_bytes()
    return "The cat sits on the mat."


def test_pickled_weights_are_never_loaded(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "classification", tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="has no safetensors weights, and pickled ones are never loaded"):
        describe_local(folder, "text-classification")


def test_code_of_a_checkpoint_is_never_run(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "classification", tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(SourceError) as caught:
        describe_local(folder, "text-classification")
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "task", "complaint"),
    [
        ("classification", "summarization", "unknown task 'summarization'"),
        ("classification", "translation", "translation with architecture 'bert' cannot be exported; MarianMT can"),
        ("nowhere", "text-classification", "no checkpoint at"),
    ],
)
def test_what_cannot_be_added_is_one_line(checkpoints: Path, kind: str, task: str, complaint: str) -> None:
    with pytest.raises(SourceError) as caught:
        describe_local(checkpoints / kind, task)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_task_are_not_filled_in_at_random(checkpoints: Path, settings, make_card) -> None:
    recipe = describe_local(checkpoints / "embeddings", "text-classification")
    card = make_card(**recipe.model_dump(mode="json"))
    with pytest.raises(SourceError, match="has no weights for"):
        Builder(settings).build(card)


def test_a_hubs_repository_is_fetched_without_its_pickles(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "cls", tmp_path / "hub" / "owner" / "tiny")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with serve_hub(tmp_path / "hub") as (endpoint, asked):
        found = download("owner/tiny", endpoint=endpoint, cache=tmp_path / "cache")
        with pytest.raises(SourceError, match="^the hub has no model 'owner/none'"):
            download("owner/none", endpoint=endpoint, cache=tmp_path / "cache")
    assert found.name == COMMIT
    fetched = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}
    assert fetched == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json",
    }  # fmt: skip
    assert not any("pytorch_model.bin" in path for path in asked)


@pytest.mark.slow
def test_no_hub_is_one_line(tmp_path: Path) -> None:
    with serve_hub(tmp_path) as (gone, _):
        pass
    with pytest.raises(SourceError) as caught:
        download("owner/name", endpoint=gone, cache=tmp_path)
    assert str(caught.value) == f"owner/name: no hub is reachable at {gone}, and no copy of it is on this machine"
    with pytest.raises(SourceError, match="neither a folder nor a name of a hub"):
        download("a name", endpoint=gone, cache=tmp_path)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"height": 8, "width": 9}, "resample": 3}, (None, (8, 9), "bicubic")),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            (256, (224, 224), "bilinear"),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, (256, (224, 224), "bicubic")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0, "resample": 3}, (None, (384, 384), "bicubic")),
        (
            {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            (256, (224, 224), "bilinear"),
        ),
    ],
)
def test_image_processors_in_the_recipes_terms(processor, expected) -> None:
    found = image_preprocessing(processor, Path("model"))
    assert (found.resize_shorter_side, found.crop, found.interpolation) == expected


@pytest.mark.parametrize("processor", [{"size": {"longest_edge": 5}}, {"size": {}}, {"size": {}, "resample": 0}])
def test_image_processors_of_other_kinds_are_refused(processor) -> None:
    with pytest.raises(SourceError, match="is not supported"):
        image_preprocessing(processor, Path("model"))


@pytest.mark.parametrize(
    ("source", "name"),
    [("google/vit-base-patch16-224", "vit-base-patch16-224"), ("/tmp/my model/", "my-model"), ("..", "model")],
)
def test_names_come_from_the_last_part(source: str, name: str) -> None:
    assert default_name(source) == name
