"""Whether a built model is still what a build would make now. Needs neither torch nor the network, and reads
no more than the project's own weights, so that starting with everything built costs a moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from gateway.catalog import CatalogError, ModelCard, Recipe, file_sha256

ZOO = Path(__file__).parent
WEIGHTS = ZOO / "weights"

LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "tokenizers", "numpy")
"""Whose versions decide what a build writes."""

BUILDERS = (
    "architectures/*.py", "checkpoints.py", "config.py", "export.py", "golden.py", "marian.py", "runtime.py",
    "sources.py", "spm.py", "validate.py",
)  # fmt: skip
"""Code that decides what a build writes and what it accepts."""

UNBUILT_FIELDS = {"title", "description", "languages", "licence", "notes", "evaluations"}
"""Fields of a recipe that a build does not depend on."""

UNSCORED_FIELDS = UNBUILT_FIELDS | {
    "architecture", "max_batch_size", "batching", "instances", "parameters", "response_cache", "parity", "golden",
}  # fmt: skip
"""Fields of a recipe that a task score does not depend on."""

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.spm", "*.model", "*.txt", "1_Pooling/*.json", "README.md")
"""What is read of a checkpoint folder; pickles are not."""


def is_fresh(card: ModelCard) -> bool:
    """Whether ``card`` is built, complete, and made from the recipe, sources, code and libraries of now."""
    evidence = card.evidence
    if evidence is None or not card.built or card.model_file.stat().st_size != evidence.model_bytes:
        return False
    if not all((card.folder / name).is_file() for name in evidence.files):
        return False
    return evidence.build_key == build_key(card.recipe)


def build_key(recipe: Recipe) -> str:
    """SHA-256 over everything that a build of ``recipe`` comes from."""
    parts = [recipe_sha256(recipe), *source_fingerprint(recipe), code_fingerprint()]
    parts += [f"{name}=={version}" for name, version in library_versions().items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def recipe_sha256(recipe: Recipe) -> str:
    """Of the fields that a build depends on: a new score or note makes no model stale."""
    fields = recipe.model_dump(mode="json", exclude=UNBUILT_FIELDS)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def scored_sha256(recipe: Recipe) -> str:
    """Of what a task score is a score of: the weights, and the fields that decide an answer.

    Neither code nor library versions are in it: what they may change, parity and golden answers bound in every build.
    """
    fields = recipe.model_dump(mode="json", exclude=UNSCORED_FIELDS)
    parts = [json.dumps(fields, sort_keys=True), *source_fingerprint(recipe)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of :data:`LIBRARIES`, ``missing`` where one is not installed."""
    return {name: package_version(name) or "missing" for name in LIBRARIES}


@cache
def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def code_fingerprint() -> str:
    """SHA-256 over :data:`BUILDERS`."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in BUILDERS for path in ZOO.glob(pattern)):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def source_fingerprint(recipe: Recipe) -> list[str]:
    """What identifies the weights: hashes of files, or the name and version of who carries them."""
    source = recipe.source
    parts = [f"{source.kind}:{source.name}@{source.revision}"]
    if source.kind == "trained":
        parts += _hash_files(WEIGHTS / source.name, ("*.safetensors", "*.json", "labels.txt"))
    if source.kind == "local":
        parts += _hash_files(Path(source.name), CHECKPOINT_FILES)
    for package in (source.trunk, source.name if source.kind == "package" else None):
        if package is not None:
            parts.append(package_fingerprint(package))
    return parts


@cache
def package_fingerprint(name: str) -> str:
    """A distribution's version and the hashes that its RECORD has of every file in it.

    What pip made beside the package (compiled files, scripts that name this interpreter) is no part of it.
    """
    try:
        record = metadata.distribution(name).read_text("RECORD") or ""
    except metadata.PackageNotFoundError:
        return f"{name}: missing"
    made = (".dist-info/", "__pycache__/", "../")
    lines = sorted(line for line in record.splitlines() if not any(part in line for part in made))
    return f"{name}=={package_version(name)} {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def _hash_files(folder: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if path.name == "training.json":  # how the weights came about, not what they are
            continue
        try:
            yield f"{path.relative_to(folder)}:{file_sha256(path)}"
        except OSError as error:
            raise CatalogError(f"{path} cannot be read: {error.strerror or error}") from error
