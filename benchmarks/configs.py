"""Model repositories with other batching: ``config.pbtxt`` read, changed and written with Triton's own schema."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.suite import Variant


def read_config(path: Path) -> Any:
    """A ``ModelConfig`` message. Raises ``OSError`` or ``google.protobuf.text_format.ParseError``."""
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def changed(
    config: Any,
    *,
    batching: bool = True,
    instances: int | None = None,
    queue_delay_us: int | None = None,
    preferred: Sequence[int] | None = None,
) -> str:
    """``config`` as text with those settings changed; None leaves one as it is."""
    result = model_config_pb2.ModelConfig()
    result.CopyFrom(config)
    if not batching:
        result.ClearField("dynamic_batching")
    elif result.max_batch_size > 0:
        if queue_delay_us is not None:
            result.dynamic_batching.max_queue_delay_microseconds = queue_delay_us
        if preferred is not None:
            del result.dynamic_batching.preferred_batch_size[:]
            result.dynamic_batching.preferred_batch_size.extend(
                size for size in preferred if size <= result.max_batch_size
            )
    if instances is not None:
        if not result.instance_group:
            result.instance_group.add()
        for group in result.instance_group:
            group.count = instances
    return str(text_format.MessageToString(result))


@contextlib.contextmanager
def repository(source: Path, models: Sequence[str], variant: Variant) -> Iterator[Path]:
    """A model repository as ``variant`` wants it: ``source`` itself if nothing changes, else a copy."""
    if variant.batching and variant.instances is None and variant.queue_delay_us is None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="tidegate-models-") as folder:
        for model in models:
            copy(source / model, Path(folder) / model)
            path = Path(folder) / model / "config.pbtxt"
            text = changed(
                read_config(path), batching=variant.batching, instances=variant.instances,
                queue_delay_us=variant.queue_delay_us,
            )  # fmt: skip
            rewrite(path.parent, text)
        yield Path(folder)


def rewrite(folder: Path, text: str) -> None:
    """Put another ``config.pbtxt`` into a copied model folder, and its hash into the copy's ``card.json``.

    The card vouches for the configuration that was validated; here another one is wanted on purpose.
    """
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    path = folder / "card.json"
    if not path.is_file():
        return
    card = json.loads(path.read_text(encoding="utf-8"))
    files = card.get("files")
    if isinstance(files, dict) and "config.pbtxt" in files:
        files["config.pbtxt"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(card), encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Copy a model folder. Raises ``OSError`` if it is not there."""
    shutil.copytree(source, target)
