"""SentencePiece models of MarianMT as a ``tokenizers`` file, which is what the gateway reads.

A Marian tokenizer segments with ``source.spm`` (a unigram model, Kudo 2018) and numbers the pieces by
``vocab.json``; target ids are read through the same ``vocab.json``. One unigram model in the order of
``vocab.json`` does both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.utils import sentencepiece_model_pb2_new

from zoo.errors import SourceError

UNIGRAM = 1
NORMAL, USER_DEFINED = 1, 4
TARGET_ONLY = -1.0e4
"""Score of a piece that only the target language has: below any path of source pieces."""


def marian_tokenizer(folder: Path, *, unknown: str, end: str, padding: str) -> Tokenizer:
    """The tokenizer of a MarianMT checkpoint folder (``source.spm``, ``vocab.json``).

    Raises :class:`SourceError` for a folder without them or a model that is not unigram.
    """
    try:
        vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        proto = _read_proto(folder / "source.spm")
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder} holds no readable MarianMT tokenizer (source.spm, vocab.json): {error}") from error
    if proto.trainer_spec.model_type != UNIGRAM:
        raise SourceError(f"{folder / 'source.spm'} is not a unigram model; no other kind of MarianMT is supported")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise SourceError(f"{folder / 'vocab.json'}: its ids are not 0 to {len(vocabulary) - 1}")
    tokenizer = Tokenizer(models.Unigram(_scored(vocabulary, proto), unk_id=vocabulary[unknown], byte_fallback=False))
    tokenizer.normalizer = _normalizer(proto)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    languages = [token for token in vocabulary if token.startswith(">>") and token.endswith("<<")]
    special = (end, padding, unknown, *languages)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    return tokenizer


def _scored(vocabulary: dict[str, int], proto: Any) -> list[tuple[str, float]]:
    """Pieces in the order of their ids, with the scores of ``source.spm``."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)}
    return [
        (piece, scores.get(piece, TARGET_ONLY)) for piece, _ in sorted(vocabulary.items(), key=lambda item: item[1])
    ]


def _normalizer(proto: Any) -> normalizers.Normalizer:
    spec = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)


def _read_proto(path: Path) -> Any:
    schema: Any = sentencepiece_model_pb2_new
    proto = schema.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:
        raise ValueError(f"{path.name}: {error}") from error
    return proto
