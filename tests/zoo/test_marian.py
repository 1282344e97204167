"""MarianMT: the scriptable module and the tokenizers file against transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from tests.zoo.checkpoints import ENGLISH, FRENCH, save_marian
from zoo.checkpoints import load_module, load_tokenizer
from zoo.errors import SourceError
from zoo.marian import Marian, from_transformers

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_marian(tmp_path_factory.mktemp("marian") / "opus")


@pytest.fixture(scope="module")
def source(folder: Path) -> MarianMTModel:
    return MarianMTModel.from_pretrained(folder, use_safetensors=True).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[2, 2:] = 0
    return ids, mask


def test_logits_equal_those_of_transformers(source: MarianMTModel) -> None:
    ids, mask = batch()
    targets = torch.randint(0, 50, (3, 6), generator=torch.Generator().manual_seed(6))
    module = from_transformers(source, unknown=1).model
    with torch.inference_mode():
        expected = source(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
        torch.testing.assert_close(module(ids, mask, targets), expected, atol=1e-4, rtol=1e-4)


def test_a_greedy_search_takes_the_steps_that_transformers_takes(source: MarianMTModel) -> None:
    """Up to the end of sentence: of equally long beams the search keeps the best that ever closed."""
    ids, mask = batch()
    translator = from_transformers(source, unknown=1)
    translator.beams = 1
    with torch.inference_mode():
        expected = source.generate(
            input_ids=ids, attention_mask=mask, num_beams=1, do_sample=False, no_repeat_ngram_size=3, max_length=12,
            forced_eos_token_id=None,
        )  # fmt: skip
        found, _ = translator(ids, mask)
    for wanted, row in zip(expected[:, 1:].tolist(), found.tolist(), strict=True):
        length = min(row.index(0) if 0 in row else len(row), wanted.index(0) if 0 in wanted else len(wanted))
        assert length > 2
        assert row[:length] == wanted[:length]


def test_a_row_does_not_depend_on_its_batch(folder: Path) -> None:
    module = load_module(folder, "translation")
    ids, mask = batch()
    with torch.inference_mode():
        together, scores = module(ids, mask)
        alone, score = module(ids[1:2, :4], mask[1:2, :4])
    assert scores.shape == (3, 1)
    torch.testing.assert_close(score, scores[1:2], atol=1e-4, rtol=1e-4)
    length = alone.shape[1]
    assert together[1, :length].tolist() == alone[0].tolist()


@pytest.mark.parametrize(
    "text", [*ENGLISH, *FRENCH, "  two  spaces ", ">>fra<< The cat.", "ﬁne Ａ", "zebra ÄÖ 漢", "x"]
)
def test_token_ids_equal_those_of_transformers(folder: Path, text: str) -> None:
    expected = MarianTokenizer.from_pretrained(folder)
    found = load_tokenizer(folder)
    ids = found.encode(text).ids
    assert ids == expected(text).input_ids
    assert ids[-1] == 0
    assert found.decode(ids).strip() == expected.decode(ids, skip_special_tokens=True).replace(">>fra<<", "").strip()


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("share_encoder_decoder_embeddings", False, "separate vocabularies"),
        ("activation_function", "tanh", "activation 'tanh'"),
    ],
)
def test_other_variants_are_refused_in_one_line(field: str, value: object, complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint):
        Marian(MarianConfig(vocab_size=10, d_model=8, decoder_vocab_size=10, **{field: value}))


def test_a_module_that_computes_something_else_is_refused(source: MarianMTModel) -> None:
    before = source.config.scale_embedding
    source.config.scale_embedding = False
    try:
        with pytest.raises(SourceError, match="logits differ by"):
            from_transformers(source, unknown=1)
    finally:
        source.config.scale_embedding = before
