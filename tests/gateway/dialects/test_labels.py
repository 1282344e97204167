"""Labels of outputs: the file that Triton reads, or the recipe's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tritonclient.grpc import model_config_pb2 as config_pb

from gateway.dialects.labels import Labels
from gateway.pipeline import Pipeline
from gateway.settings import Settings
from gateway.triton.signature import from_config

RECIPE = ("of", "the", "recipe")


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    (tmp_path / "model").mkdir()
    (tmp_path / "outside.txt").write_text("secret\n")
    settings = Settings(model_repository=tmp_path)
    return Labels(cast(Pipeline, SimpleNamespace(settings=settings, labels=lambda _model: RECIPE)))


def of(labels: Labels, file: str, output: str = "scores") -> Sequence[str]:
    config = config_pb.ModelConfig(name="model")
    config.output.add(name="scores", data_type=config_pb.TYPE_FP32, dims=[3], label_filename=file)
    return labels.of("model", from_config(config), output)


def test_the_file_that_the_configuration_names(labels: Labels, tmp_path: Path) -> None:
    file = tmp_path / "model" / "classes.txt"
    file.write_text("apple\npear tree\n水\n", encoding="utf-8")
    assert of(labels, "classes.txt") == ("apple", "pear tree", "水")
    file.write_text("plum\n")
    os.utime(file, ns=(1, 1))
    assert of(labels, "classes.txt") == ("plum",)


@pytest.mark.parametrize("file", ["", "none.txt", "../outside.txt", "/etc/hostname", "."])
def test_without_it_the_recipes(labels: Labels, file: str) -> None:
    assert of(labels, file) == RECIPE
    assert of(labels, file, "other") == RECIPE


def test_a_file_that_is_no_text(labels: Labels, tmp_path: Path) -> None:
    (tmp_path / "model" / "classes.txt").write_bytes(b"\xff\xfe")
    assert of(labels, "classes.txt") == RECIPE
