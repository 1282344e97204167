"""Building: what is written, when nothing is, and what a build that stops half-way leaves."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.catalog import CatalogError, ModelCard, read_card, verify_hash
from gateway.settings import Settings
from zoo.build import STEPS, Builder
from zoo.errors import SourceError, ValidationError, ZooError
from zoo.freshness import WEIGHTS, build_key, is_fresh, package_fingerprint, scored_sha256

DIGITS = Path(__file__).parents[2] / "model_repository" / "digits" / "model.yaml"


@pytest.fixture
def builder(settings: Settings) -> Builder:
    return Builder(settings)


def files(card: ModelCard) -> dict[str, bytes]:
    """Everything in the model's folder but the lock."""
    return {
        str(path.relative_to(card.folder)): path.read_bytes()
        for path in sorted(card.folder.rglob("*"))
        if path.is_file() and path.name != ".build.lock"
    }


def test_a_build_leaves_what_triton_needs_and_its_evidence(make_card, builder) -> None:
    steps: list[str] = []
    outcome = builder.build(make_card(labels=["a"], golden=[]), step=steps.append)
    card = outcome.card
    assert outcome.built
    assert card.built
    assert tuple(steps) == STEPS
    assert set(files(card)) == {"model.yaml", "config.pbtxt", "labels.txt", "card.json", "1/model.pt"}
    evidence = card.evidence
    assert evidence.parity_cases == 2
    assert evidence.parity_max_abs_error == 0.0
    assert evidence.model_bytes == card.model_file.stat().st_size
    assert evidence.versions["torch"].startswith("2.")
    assert set(evidence.files) == {"config.pbtxt", "labels.txt"}
    verify_hash(card)


def test_a_fresh_model_is_not_built_again(make_card, builder) -> None:
    card = builder.build(make_card()).card
    before = files(card)
    assert is_fresh(card)
    assert not builder.build(card).built
    assert files(card) == before
    assert builder.build(card, force=True).built


@pytest.mark.parametrize(
    ("fields", "fresh"),
    [
        ({"notes": "a remark"}, True),
        ({"evaluations": [{"metric": "m", "floor": 1, "dataset": "d", "split": "s"}]}, True),
        ({"max_batch_size": 4}, False),
        ({"parity": {"atol": 0.1}}, False),
        ({"golden": [{"inputs": "x", "expect": {}}]}, False),
    ],
)
def test_only_what_a_build_depends_on_makes_it_stale(make_card, builder, fields, fresh: bool) -> None:
    builder.build(make_card())
    assert is_fresh(make_card(**fields)) is fresh


def test_a_score_below_its_floor_fails_unless_it_is_of_other_weights(make_card, builder) -> None:
    score = {"metric": "accuracy", "value": 0.8, "floor": 0.9, "dataset": "d", "split": "s"}
    for of_these in ({}, {"model_sha256": scored_sha256(make_card().recipe)}):
        card = make_card(evaluations=[{**score, **of_these}])
        with pytest.raises(ValidationError, match=r"identity: accuracy is 0.8, below the floor of 0.9"):
            builder.build(card)
        assert not read_card(card.folder).built
    assert builder.build(make_card(evaluations=[{**score, "model_sha256": "of other weights"}])).built


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"notes": "a remark"}, True),
        ({"instances": {"count": 2}}, True),
        ({"labels": ["a"]}, False),
        ({"quantisation": "dynamic-int8"}, False),
    ],
)
def test_only_what_decides_an_answer_outdates_a_score(make_recipe, fields, same: bool) -> None:
    assert (scored_sha256(make_recipe(**fields)) == scored_sha256(make_recipe())) is same


def test_a_package_is_the_same_in_every_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip makes beside it names the interpreter; only its own files count."""

    def fingerprint(environment: str, weights: str, interpreter: str) -> str:
        site = tmp_path / environment
        info = site / "carried_weights-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carried-weights\nVersion: 1.0\n")
        lines = (
            f"carried_weights/model.safetensors,sha256={weights},4",
            f"carried_weights/__pycache__/__init__.cpython-{interpreter}.pyc,,",
            f"../../../bin/carried-weights,sha256={interpreter},200",
            "carried_weights-1.0.dist-info/METADATA,sha256=x,9",
        )
        (info / "RECORD").write_text("\n".join(lines))
        with monkeypatch.context() as patched:
            patched.syspath_prepend(site)
            return package_fingerprint.__wrapped__("carried-weights")

    one = fingerprint("one", "aaaa", "310")
    assert one == fingerprint("two", "aaaa", "312")
    assert one != fingerprint("three", "bbbb", "310")


def test_new_weights_outdate_a_score(make_recipe, tmp_path: Path) -> None:
    recipe = make_recipe(source={"kind": "local", "name": str(tmp_path)})
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = scored_sha256(recipe)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert scored_sha256(recipe) != before


@pytest.mark.parametrize("name", ["config.pbtxt", "card.json", "1/model.pt"])
def test_a_lost_file_makes_it_stale(make_card, builder, name: str) -> None:
    card = builder.build(make_card()).card
    (card.folder / name).unlink()
    assert not is_fresh(read_card(card.folder))
    assert builder.build(card).built
    assert is_fresh(read_card(card.folder))


def test_new_weights_make_it_stale(make_card, tmp_path: Path) -> None:
    weights = tmp_path / "checkpoint"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"one")
    recipe = make_card(source={"kind": "local", "name": str(weights)}).recipe
    before = build_key(recipe)
    assert build_key(recipe) == before
    (weights / "pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    assert build_key(recipe) == before
    (weights / "model.safetensors").write_bytes(b"two")
    assert build_key(recipe) != before


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_build_leaves_the_old_one(make_card, builder, step: str) -> None:
    before = files(builder.build(make_card()).card)
    card = make_card()

    def interrupt(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder.build(card, force=True, step=interrupt)
    assert files(card) == before
    verify_hash(read_card(card.folder))


def test_a_build_that_was_killed_is_swept_up(make_card, builder) -> None:
    card = make_card()
    (card.folder / ".build-killed" / "1").mkdir(parents=True)
    assert {path.name for path in builder.build(card).card.folder.iterdir()} == {
        "1", ".build.lock", "card.json", "config.pbtxt", "model.yaml",
    }  # fmt: skip


def test_a_model_that_misses_its_golden_set_is_not_served(make_card, builder) -> None:
    card = make_card(golden=[{"inputs": "x", "expect": {"label": "y"}}])
    with pytest.raises(ValidationError, match=r"^identity: golden input 1: the model has no task to call$"):
        builder.build(card)
    assert not read_card(card.folder).built
    assert set(files(card)) == {"model.yaml"}


def test_a_full_disk_is_one_line_and_leaves_the_old_build(make_card, builder) -> None:
    before = files(builder.build(make_card()).card)

    def full(step: str) -> None:
        if step == "config":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ZooError, match="no space left on the disk of"):
        builder.build(make_card(), force=True, step=full)
    assert files(make_card())["card.json"] == before["card.json"]


def test_the_digits_give_their_golden_answers(repository: Path, builder) -> None:
    folder = repository / "digits"
    folder.mkdir()
    shutil.copy(DIGITS, folder)
    card = builder.build(read_card(folder)).card
    assert card.evidence.golden_passed == len(card.recipe.golden) > 5
    assert card.evidence.parity_max_abs_error <= card.recipe.parity.atol


def test_a_wrong_golden_answer_is_named(repository: Path, builder) -> None:
    folder = repository / "digits"
    folder.mkdir()
    text = DIGITS.read_text(encoding="utf-8")
    (folder / "model.yaml").write_text(text.replace('expect: {label: "3"}', 'expect: {label: "8"}'), encoding="utf-8")
    with pytest.raises(ValidationError, match="^digits: golden input 4: expected '8', got '3'"):
        builder.build(read_card(folder))
    assert not read_card(folder).built


def test_labels_in_another_order_are_refused(repository: Path, builder) -> None:
    folder = repository / "digits"
    folder.mkdir()
    text = DIGITS.read_text(encoding="utf-8")
    (folder / "model.yaml").write_text(text.replace('["0", "1"', '["1", "0"'), encoding="utf-8")
    with pytest.raises(SourceError, match="in another order"):
        builder.build(read_card(folder))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ({"kind": "builtin", "name": "magic"}, "no builtin model 'magic'"),
        ({"kind": "package", "name": "not-installed"}, "no loader for the package 'not-installed'"),
        ({"kind": "trained", "name": "nothing"}, "its weights are missing in"),
        ({"kind": "trained", "name": "nothing", "trunk": "no-such-trunk"}, "the package no-such-trunk is missing"),
        ({"kind": "local", "name": "/nowhere"}, "no checkpoint at /nowhere"),
    ],
)
def test_a_missing_source_is_one_line(make_card, builder, source, complaint: str) -> None:
    with pytest.raises(SourceError) as caught:
        builder.build(make_card(source=source))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_file_is_found_before_it_is_loaded(make_card, builder) -> None:
    card = builder.build(make_card()).card
    card.model_file.write_bytes(card.model_file.read_bytes()[:-1] + b"x")
    with pytest.raises(CatalogError, match="is not the file that was validated"):
        verify_hash(card)
    card = builder.build(card, force=True).card
    verify_hash(card)
    (card.folder / "config.pbtxt").write_text("name: 'other'")
    with pytest.raises(CatalogError, match=r"config\.pbtxt is not the file"):
        verify_hash(card)
    (card.folder / "config.pbtxt").unlink()
    with pytest.raises(CatalogError, match="cannot be read"):
        verify_hash(card)
    with pytest.raises(CatalogError, match="not built yet"):
        verify_hash(make_card(name="other"))


def test_two_that_want_the_same_model_build_it_once(make_card, builder) -> None:
    card = make_card()
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(builder.build, [card, card]))
    assert sorted(outcome.built for outcome in outcomes) == [False, True]
    verify_hash(outcomes[0].card)


def test_every_weight_file_is_within_the_repositorys_limit() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 40_000_000
