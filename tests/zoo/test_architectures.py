"""The starter architectures: shapes, padding, scripting, storage and the committed weights."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from zoo.architectures import NAMES, WEIGHTS, labels, load
from zoo.architectures.adapter import extract_adapter, merge_adapter
from zoo.architectures.digits import Digits
from zoo.architectures.storage import (
    dequantize_rows,
    load_weights,
    quantize_rows,
    save_weights,
)
from zoo.architectures.topics import Topics
from zoo.architectures.translation import (
    BOS,
    EOS,
    PAD,
    Translation,
    TranslationConfig,
    Translator,
)

# TorchScript is what Triton's PyTorch backend runs, deprecated in torch or not.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

MEBIBYTE = 2**20
TRANSLATIONS = ("translate-zh-en", "translate-en-fr")


def small_translator(beams: int = 4) -> Translator:
    """A random translator; its embedding is scaled so that its choices are not ties."""
    torch.manual_seed(7)
    model = Translation(
        TranslationConfig(
            vocabulary_size=60,
            target_size=40,
            width=32,
            feed_forward=64,
            encoder_layers=2,
            decoder_layers=2,
        )
    )
    return Translator(model, beams=beams).eval()


def sources(lengths: list[int], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Random rows of these lengths, padded to the longest and `padding` further."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(len(lengths), max(lengths) + padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, 60, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


def trimmed(row: Tensor) -> list[int]:
    return [number for number in row.tolist() if number != PAD]


def roundtrip(module: nn.Module, path: Path) -> torch.jit.ScriptModule:
    torch.jit.script(module).save(str(path))
    return torch.jit.load(str(path))


@pytest.fixture(scope="module", params=TRANSLATIONS)
def translator(request: pytest.FixtureRequest) -> tuple[nn.Module, Tokenizer]:
    path = WEIGHTS / request.param / "tokenizer.json"
    return load(request.param), Tokenizer.from_file(str(path))


SENTENCES = {
    "▁汤": ("你好。", "你知道这首歌吗？", "他昨天晚上很晚才回来，因为他要在图书馆学习。"),
    "▁un": ("A dog runs.", "Two men are sitting on a bench in the park.", "A girl in a red shirt."),
}


def sentences_for(tokenizer: Tokenizer) -> tuple[str, ...]:
    chinese = tokenizer.token_to_id("你") is not None
    return SENTENCES["▁汤" if chinese else "▁un"]


def encoded(tokenizer: Tokenizer, texts: tuple[str, ...], padding: int = 0) -> tuple[Tensor, Tensor]:
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    longest = max(map(len, rows)) + padding
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


class TestDigits:
    def test_maps_uint8_images_to_ten_logits(self) -> None:
        image = torch.randint(0, 256, (3, 28, 28, 1), dtype=torch.uint8)
        logits = Digits().eval()(image)
        assert logits.shape == (3, 10)
        assert logits.dtype == torch.float32

    def test_has_the_layers_of_the_mission(self) -> None:
        shapes = {name: tuple(value.shape) for name, value in Digits().named_parameters()}
        assert shapes["convolution_1.weight"] == (32, 1, 3, 3)
        assert shapes["convolution_2.weight"] == (64, 32, 3, 3)
        assert shapes["hidden.weight"] == (64, 1600)
        assert shapes["output.weight"] == (10, 64)

    def test_scripted_equals_eager(self, tmp_path: Path) -> None:
        model = load("digits")
        image = torch.randint(0, 256, (5, 28, 28, 1), dtype=torch.uint8)
        assert torch.allclose(roundtrip(model, tmp_path / "m.pt")(image), model(image), atol=1e-5)


class TestTopics:
    def test_has_the_layers_of_the_mission(self) -> None:
        model = Topics()
        assert tuple(model.embedding.weight.shape) == (10_000, 64)
        assert (model.lstm.hidden_size, model.lstm.bidirectional) == (64, True)
        assert tuple(model.hidden.weight.shape) == (64, 128)
        assert tuple(model.output.weight.shape) == (10, 64)

    def test_padding_changes_nothing(self) -> None:
        model = load("topics-zh")
        ids, mask = sources([9, 4, 1], padding=12)
        together = model(ids, mask)
        for row, length in enumerate([9, 4, 1]):
            alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length])
            assert torch.allclose(together[row], alone[0], atol=1e-5)

    def test_scripted_equals_eager(self, tmp_path: Path) -> None:
        model = load("topics-zh")
        scripted = roundtrip(model, tmp_path / "m.pt")
        for lengths in ([9, 4, 1], [3] * 16, [1]):
            ids, mask = sources(lengths)
            assert torch.allclose(scripted(ids, mask), model(ids, mask), atol=1e-5)

    def test_a_row_of_padding_alone_is_answered(self) -> None:
        ids = torch.zeros(2, 5, dtype=torch.long)
        assert torch.isfinite(load("topics-zh")(ids, ids)).all()

    def test_its_tokenizer_has_ten_thousand_entries(self) -> None:
        tokenizer = Tokenizer.from_file(str(WEIGHTS / "topics-zh" / "tokenizer.json"))
        assert tokenizer.get_vocab_size() == 10_000


class TestTranslation:
    def test_the_future_is_hidden(self) -> None:
        model = small_translator().model
        ids, mask = sources([5])
        before = torch.tensor([[BOS, 5, 6, 7, 8]])
        after = torch.tensor([[BOS, 5, 6, 9, 11]])
        first, second = model(ids, mask, before), model(ids, mask, after)
        assert first.shape == (1, 5, 40)
        assert torch.allclose(first[:, :3], second[:, :3])
        assert not torch.allclose(first[:, 3:], second[:, 3:])

    def test_steps_equal_teacher_forcing(self) -> None:
        model = small_translator().model
        ids, mask = sources([6, 3])
        target = torch.tensor([[BOS, 5, 6, 7], [BOS, 9, 8, 30]])
        expected = model(ids, mask, target)
        hidden = model.source_mask(mask)
        kept = model.sources(model.encode(ids, hidden), 1)
        pasts = [(key[:, :, :0], value[:, :, :0]) for key, value in kept]
        for position in range(target.shape[1]):
            step = target[:, position : position + 1]
            logits, pasts = model.step(step, position, pasts, kept, hidden)
            assert torch.allclose(logits, expected[:, position], atol=1e-5)

    @pytest.mark.parametrize("beams", [1, 4])
    def test_a_result_depends_on_its_sentence_alone(self, beams: int) -> None:
        translator = small_translator(beams)
        lengths = [7, 2, 5, 1]
        ids, mask = sources(lengths, padding=9)
        together, scores = translator(ids, mask)
        for row, length in enumerate(lengths):
            alone, score = translator(ids[row : row + 1, :length], mask[row : row + 1, :length])
            assert trimmed(together[row]) == trimmed(alone[0])
            assert torch.allclose(scores[row], score[0], atol=1e-5)

    @pytest.mark.parametrize("beams", [1, 4])
    def test_a_result_ends_and_repeats_no_trigram(self, beams: int) -> None:
        output, _ = small_translator(beams)(*sources([12, 3, 1]))
        for row in output:
            ids = trimmed(row)
            trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
            assert ids[-1] == EOS
            assert len(set(trigrams)) == len(trigrams)

    def test_scores_are_the_mean_log_probability(self) -> None:
        translator = small_translator(1)
        ids, mask = sources([4])
        output, score = translator(ids, mask)
        shifted = torch.cat((torch.tensor([[BOS]]), output[:, :-1]), dim=1)
        logits = torch.log_softmax(translator.model(ids, mask, shifted), dim=-1)
        expected = logits.gather(2, output.unsqueeze(2)).mean()
        assert torch.allclose(score[0], expected, atol=1e-5)

    def test_scripted_equals_eager(self, tmp_path: Path) -> None:
        translator = small_translator()
        scripted = roundtrip(translator, tmp_path / "m.pt")
        for lengths in ([7, 2, 5], [1], [3] * 16):
            ids, mask = sources(lengths)
            expected, scores = translator(ids, mask)
            output, found = scripted(ids, mask)
            assert torch.equal(output, expected)
            assert torch.allclose(found, scores, atol=1e-5)

    def test_committed_weights_scripted_and_padded(
        self, translator: tuple[nn.Module, Tokenizer], tmp_path: Path
    ) -> None:
        model, tokenizer = translator
        scripted = roundtrip(model, tmp_path / "m.pt")
        texts = sentences_for(tokenizer)
        with torch.inference_mode():
            together, scores = scripted(*encoded(tokenizer, texts, padding=20))
            for row, text in enumerate(texts):
                alone, score = model(*encoded(tokenizer, (text,)))
                assert trimmed(together[row]) == trimmed(alone[0])
                assert torch.allclose(scores[row], score[0], atol=1e-4)
                assert tokenizer.decode(trimmed(alone[0]), skip_special_tokens=True)

    def test_a_target_comes_back_from_its_ids(self, translator: tuple[nn.Module, Tokenizer]) -> None:
        tokenizer = translator[1]
        text = "Tom can't come." if tokenizer.token_to_id("你") is not None else "Un chien court."
        ids = tokenizer.encode(text).ids
        assert ids[-1] == EOS
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


class TestHeads:
    @pytest.mark.parametrize("name", ["qa", "sentiment", "entities", "embeddings"])
    def test_padding_changes_nothing(self, name: str) -> None:
        model = load(name)
        generator = torch.Generator().manual_seed(5)
        ids = torch.randint(1000, 20000, (2, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        types = (torch.zeros_like(ids),) if name == "qa" else ()
        together = model(ids, mask, *types)
        alone = model(ids[1:, :5], mask[1:, :5], *(kind[1:, :5] for kind in types))
        pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (together, alone)), strict=True)
        for padded, plain in pairs:
            row = padded[1] if plain.dim() == 2 and name != "qa" else padded[1, :5]
            assert torch.allclose(row, plain[0], atol=1e-4)

    def test_an_adapter_shifts_the_weight_it_belongs_to(self) -> None:
        trunk = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        before = trunk[0].weight.detach().clone()
        down, up = torch.randn(2, 4), torch.randn(3, 2)
        merge_adapter(trunk, {"0.lora_A": down, "0.lora_B": up})
        assert torch.allclose(trunk[0].weight, before + up @ down)

    def test_a_plain_trunk_has_no_adapter(self) -> None:
        assert extract_adapter(nn.Sequential(nn.Linear(4, 3))) == {}


class TestStorage:
    def test_int8_rows_are_within_half_a_step(self) -> None:
        matrix = torch.randn(20, 30) * torch.logspace(-3, 1, 20).unsqueeze(1)
        values, scale = quantize_rows(matrix)
        assert (values.dtype, scale.dtype) == (torch.int8, torch.float16)
        error = (dequantize_rows(values, scale) - matrix).abs().amax(dim=1)
        assert (error <= 0.51 * scale.float() + 1e-3 * matrix.abs().amax(dim=1)).all()

    def test_names_and_shapes_survive(self, tmp_path: Path) -> None:
        state = {"big": torch.randn(8, 16), "small": torch.randn(3, 2), "bias": torch.randn(5)}
        save_weights(tmp_path / "w.safetensors", state, int8_from=100)
        found = load_weights(tmp_path / "w.safetensors")
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in state.items()
        }
        assert torch.allclose(found["small"], state["small"], atol=1e-2)
        assert torch.allclose(found["big"], state["big"], atol=0.05)

    def test_a_row_of_zeros_stays_zero(self) -> None:
        assert not dequantize_rows(*quantize_rows(torch.zeros(2, 3))).any()


class TestWeights:
    @pytest.mark.parametrize("name", [name for name in NAMES if name != "embeddings"])
    def test_are_there_with_their_record(self, name: str) -> None:
        assert (WEIGHTS / name / "weights.safetensors").is_file()
        assert (WEIGHTS / name / "training.json").is_file()

    def test_are_within_the_budget(self) -> None:
        total = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
        assert total <= 34 * MEBIBYTE

    @pytest.mark.parametrize(("name", "count"), [("digits", 10), ("topics-zh", 10), ("sentiment", 2), ("entities", 9)])
    def test_have_a_label_for_each_logit(self, name: str, count: int) -> None:
        assert len(labels(name)) == count

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(KeyError):
            load("nonsense")
