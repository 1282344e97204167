"""`tidegate models`, as it is typed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gateway.catalog import read_card
from gateway.tasks.image import model_pixels, open_picture
from tests.zoo.checkpoints import save_text_model
from tests.zoo.hub import COMMIT, serve_hub
from tidegate.commands.models import app
from zoo.freshness import scored_sha256
from zoo.pictures import STROKES, load_picture

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "model_repository" / "digits" / "model.yaml"


@pytest.fixture
def tidegate(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command on the temporary repository."""
    monkeypatch.setenv("TIDEGATE_MODEL_REPOSITORY", str(repository))

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def error_line(result: Result) -> str:
    """The one line of a failure."""
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_the_life_of_a_model(tidegate, make_card) -> None:
    card = make_card()
    assert json.loads(tidegate("list", "--json").stdout)[0]["built"] == "no"
    assert "not built yet" in json.loads(tidegate("verify", "--json").stdout)["identity"]
    assert "built: identity" in tidegate("build").stderr
    listed = json.loads(tidegate("list", "--json").stdout)[0]
    assert listed["built"] == "yes"
    assert listed["parity_max_abs_error"] == 0.0
    assert "identity" in tidegate("list").stdout
    assert json.loads(tidegate("show", "identity", "--json").stdout)["evidence"]["parity_cases"] == 2
    assert "everything is up to date" in tidegate("build").stderr
    assert tidegate("verify").exit_code == 0
    make_card(max_batch_size=3)
    assert json.loads(tidegate("list", "--json").stdout)[0]["built"] == "outdated"
    card.model_file.write_bytes(b"something else")
    assert tidegate("verify").exit_code == 1
    assert tidegate("remove", "identity", "--built-only", "--yes").exit_code == 0
    assert [path.name for path in card.folder.iterdir()] == ["model.yaml"]
    assert tidegate("remove", "identity", "--yes").exit_code == 0
    assert not card.folder.exists()


def test_one_broken_model_does_not_keep_the_others(tidegate, make_card, repository: Path) -> None:
    make_card(name="broken", source={"kind": "builtin", "name": "magic"})
    make_card(name="sound")
    assert error_line(tidegate("build")).endswith("broken: there is no builtin model 'magic'")
    assert read_card(repository / "sound").built
    assert not read_card(repository / "broken").built


def test_unknown_models_and_recipes_that_cannot_be_read_are_one_line(tidegate, make_card, repository: Path) -> None:
    make_card()
    assert "no model named nothing" in error_line(tidegate("build", "nothing"))
    (repository / "identity" / "model.yaml").write_text("name: identity\ntitle: [1\n")
    assert "identity/model.yaml" in error_line(tidegate("list"))
    (repository / "identity" / "model.yaml").write_text("name: identity\n")
    assert "title: Field required" in error_line(tidegate("build"))


def test_nothing_heavy_is_imported_where_nothing_is_to_do() -> None:
    code = (
        "import sys\n"
        "from tidegate.commands.models import app, build_missing\n"
        "app(['list', '--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules), sorted(sys.modules)\n"
    )
    environment = {**os.environ, "TIDEGATE_MODEL_REPOSITORY": str(ROOT / "model_repository")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) >= 12


def test_a_missing_package_is_one_line(make_card, repository: Path, tmp_path: Path) -> None:
    make_card()
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    environment = {
        **os.environ,
        "TIDEGATE_MODEL_REPOSITORY": str(repository),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }
    code = "from tidegate.commands.models import app; app(['build'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: building models needs the package torch; `pip install 'tidegate[zoo]'` brings it"
    ]


@pytest.fixture
def digits_data(tmp_path: Path) -> Path:
    """MNIST's files: 8,000 blank images that nobody looks at, and the drawn digits to validate on."""
    folder = tmp_path / "data" / "digits"
    folder.mkdir(parents=True)
    preprocessing = read_card(DIGITS.parent).recipe.preprocessing
    drawn = [model_pixels(open_picture(load_picture(f"digit:{digit}"), 10**6), preprocessing) for digit in STROKES]
    images = np.concatenate([np.zeros((8000, 28, 28), np.uint8), np.stack(drawn).reshape(-1, 28, 28)])
    labels = np.concatenate([np.zeros(8000, np.uint8), np.array([int(digit) for digit in STROKES], np.uint8)])
    head = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
    head = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    return folder.parent


def test_a_score_is_measured_and_written_into_the_recipe(tidegate, repository: Path, digits_data: Path) -> None:
    (repository / "digits").mkdir()
    shutil.copy(DIGITS, repository / "digits")
    assert "not built yet" in error_line(tidegate("evaluate", "digits", "--data", digits_data))
    assert tidegate("build").exit_code == 0
    path = repository / "digits" / "model.yaml"
    before = path.read_text(encoding="utf-8")
    partial = json.loads(tidegate("evaluate", "digits", "--data", digits_data, "--limit", "3", "--json").stdout)
    assert partial[0]["samples"] == 3
    assert path.read_text(encoding="utf-8") == before
    result = tidegate("evaluate", "digits", "--data", digits_data)
    assert result.exit_code == 0, result.stderr
    measured = read_card(path.parent).recipe.evaluations[0]
    assert measured.value == 1.0
    assert measured.samples == len(STROKES)
    assert len(measured.sha256) == 64
    assert measured.model_sha256 == scored_sha256(read_card(path.parent).recipe)
    assert measured.date is not None
    assert json.loads(tidegate("list", "--json").stdout)[0]["built"] == "yes"


def test_a_score_below_its_floor_fails_and_is_not_written(tidegate, repository: Path, digits_data: Path) -> None:
    labels = digits_data / "digits" / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(gzip.decompress(labels.read_bytes()))
    raw[-2:] = b"\x06\x06"
    labels.write_bytes(gzip.compress(bytes(raw)))
    (repository / "digits").mkdir()
    shutil.copy(DIGITS, repository / "digits")
    assert tidegate("build").exit_code == 0
    path = repository / "digits" / "model.yaml"
    before = path.read_text(encoding="utf-8")
    line = error_line(tidegate("evaluate", "digits", "--data", digits_data))
    assert "accuracy is 0.7143, below the floor of 0.985" in line
    assert path.read_text(encoding="utf-8") == before


def test_data_that_is_not_there_is_one_line(tidegate, repository: Path, make_card, tmp_path: Path) -> None:
    make_card(evaluations=[{"metric": "m", "floor": 1, "dataset": "d", "split": "s"}])
    shutil.copytree(DIGITS.parent, repository / "digits", ignore=shutil.ignore_patterns("[!m]*"))
    assert tidegate("build").exit_code == 0
    assert "t10k-images-idx3-ubyte.gz is missing" in error_line(tidegate("evaluate", "digits", "--data", tmp_path))
    assert "no data set is known" in error_line(tidegate("evaluate", "identity", "--data", tmp_path))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("local") / "tiny-bert", "classification")


@pytest.mark.slow
def test_a_local_checkpoint_is_added(tidegate, repository: Path, checkpoint: Path) -> None:
    result = tidegate("add", checkpoint, "--task", "text-classification", "--labels", "a,b,c")
    assert result.exit_code == 0, result.stderr
    card = read_card(repository / "tiny-bert")
    assert card.built
    assert card.recipe.labels == ("a", "b", "c")
    assert "there is a model 'tiny-bert' already" in error_line(
        tidegate("add", checkpoint, "-T", "text-classification")
    )


def test_a_model_that_cannot_be_built_leaves_nothing(tidegate, repository: Path, checkpoint: Path) -> None:
    assert "image" in error_line(tidegate("add", checkpoint, "--task", "image-classification"))
    assert "no weights for" in error_line(tidegate("add", checkpoint, "--task", "question-answering"))
    assert "unknown task 'magic'" in error_line(tidegate("add", checkpoint, "--task", "magic"))
    assert "name" in error_line(tidegate("add", checkpoint, "-T", "text-classification", "--name", "a b"))
    assert list(repository.iterdir()) == []


def add_from_hub(endpoint: str, repository: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """`tidegate models add` in a process of its own: the hub's address is read when its library is imported."""
    code = "from tidegate.commands.models import app; app()"
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "TIDEGATE_MODEL_REPOSITORY": str(repository),
    }
    arguments = [sys.executable, "-c", code, "add", "owner/tiny", "--task", "text-classification"]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_without_a_hub_nothing_is_added_and_one_line_says_so(repository: Path, tmp_path: Path) -> None:
    with serve_hub(tmp_path) as (gone, _asked):
        pass
    done = add_from_hub(gone, repository, tmp_path / "cache")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: owner/tiny: no hub is reachable at {gone}, and no copy of it is on this machine"
    ]
    assert done.stdout == ""
    assert list(repository.iterdir()) == []


@pytest.mark.slow
def test_a_hubs_model_is_added_with_its_commit(repository: Path, tmp_path: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "hub" / "owner" / "tiny")
    with serve_hub(tmp_path / "hub") as (endpoint, _asked):
        done = add_from_hub(endpoint, repository, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    card = read_card(repository / "tiny")
    assert card.recipe.source.revision == COMMIT
    assert card.built


def test_every_command_shows_an_example(tidegate) -> None:
    for command in ("list", "build", "show", "evaluate", "add", "verify", "remove"):
        assert f"tidegate models {command}" in tidegate(command, "--help").stdout
