"""The metrics, readers and helpers behind the training scripts; no data set is needed."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from zoo.architectures.trunk import trunk_folder
from zoo.training.common import (
    Budget,
    ByteDropout,
    Trainer,
    length_buckets,
    padded,
    use_byte_dropout,
    warm_cosine,
)
from zoo.training.datasets import (
    DIGITS_TRAIN,
    Question,
    TaggedSentence,
    read_conll,
    read_digits,
    read_sentiment,
    read_squad,
    read_topics,
)
from zoo.training.entities import LABELS, targets_of, to_bio
from zoo.training.entities import encode as encode_words
from zoo.training.evaluation import (
    accuracy,
    bleu,
    entity_f1,
    entity_spans,
    load_split,
    normalize_answer,
    squad_f1_em,
    topk,
)
from zoo.training.pieces import SPECIAL, end_with_eos, target_first, train_bpe
from zoo.training.windows import LONGEST, best_answer, make_windows


@pytest.fixture(scope="module")
def trunk_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(trunk_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


class TestMetrics:
    def test_accuracy(self) -> None:
        assert accuracy([1, 2, 3, 3], [1, 2, 0, 3]) == 0.75

    @pytest.mark.parametrize(("k", "share"), [(1, 0.5), (2, 1.0)])
    def test_topk(self, k: int, share: float) -> None:
        assert topk([[4, 1], [2, 3]], [1, 2], k) == share

    def test_lengths_that_differ_are_refused(self) -> None:
        with pytest.raises(ValueError, match="argument 2"):
            accuracy([1], [1, 2])

    def test_bleu_of_the_reference_is_100(self) -> None:
        text = ["The cat sat on the mat.", "It was a warm day, was it not?"]
        assert bleu(text, text) == pytest.approx(100)

    def test_answers_are_compared_without_articles_case_and_marks(self) -> None:
        assert normalize_answer("  The Eiffel-Tower, a  sight!") == "eiffeltower sight"

    def test_squad_takes_the_best_of_the_answers(self) -> None:
        f1, exact = squad_f1_em(
            {"1": "in the year 1999", "2": "Paris"},
            {"1": ["1999", "year 1999"], "2": ["paris"], "3": ["missing"]},
        )
        assert exact == pytest.approx(100 / 3)
        assert f1 == pytest.approx(100 * (2 * 2 / 5 + 1) / 3)

    @pytest.mark.parametrize(
        ("tags", "spans"),
        [
            (["I-PER", "I-PER", "O"], {("PER", 0, 1)}),
            (["B-PER", "I-PER", "B-PER"], {("PER", 0, 1), ("PER", 2, 2)}),
            (["I-PER", "I-LOC"], {("PER", 0, 0), ("LOC", 1, 1)}),
            (["O", "O"], set()),
        ],
    )
    def test_entity_spans(self, tags: list[str], spans: set[tuple[str, int, int]]) -> None:
        assert entity_spans(tags) == spans

    def test_entity_f1_wants_the_exact_span_and_type(self) -> None:
        gold = [["I-PER", "I-PER", "O", "I-LOC"]]
        assert entity_f1(gold, gold) == 1.0
        assert entity_f1([["I-PER", "O", "O", "I-LOC"]], gold) == 0.5
        assert entity_f1([["O", "O", "O", "O"]], gold) == 0.0

    def test_a_model_without_data_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError):
            load_split("embeddings", tmp_path, "validation")


class TestReaders:
    def test_digits_split(self, tmp_path: Path) -> None:
        folder = tmp_path / "digits"
        folder.mkdir()
        images = np.zeros((DIGITS_TRAIN + 5, 28, 28), dtype=np.uint8)
        images[-1, 0, 1] = 255
        write_idx(folder / "t10k-images-idx3-ubyte.gz", images)
        write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.arange(DIGITS_TRAIN + 5) % 10)
        found, labels = read_digits(tmp_path, "validation")
        assert found.shape == (5, 28, 28, 1)
        assert found[-1, 0, 1, 0] == 255
        assert labels.tolist() == [0, 1, 2, 3, 4]

    def test_sentiment_lines(self, tmp_path: Path) -> None:
        folder = tmp_path / "sst2"
        folder.mkdir()
        (folder / "dev.tsv").write_text("a fine film\t1\nno\t0\n", encoding="utf-8")
        assert read_sentiment(tmp_path, "validation") == [("a fine film", 1), ("no", 0)]

    def test_topics_with_a_line_break_inside(self, tmp_path: Path) -> None:
        folder = tmp_path / "topics_zh"
        folder.mkdir()
        text = 'cat,label,review\n酒店,1,"很好\n下次再来"\n书籍,0,不好看\n'
        (folder / "train.csv").write_text(text, encoding="utf-8")
        assert read_topics(tmp_path, "train") == [("很好\n下次再来", 9), ("不好看", 0)]

    def test_squad_questions(self, tmp_path: Path) -> None:
        answer = {"text": "blue", "answer_start": 11}
        entry = {"id": 7, "question": "What colour?", "answers": [answer]}
        paragraph = {"context": "The sky is blue.", "qas": [entry]}
        path = tmp_path / "squad.json"
        path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}), encoding="utf-8")
        expected = Question("7", "What colour?", "The sky is blue.", (("blue", 11),))
        assert read_squad(path) == [expected]

    def test_conll_sentences(self, tmp_path: Path) -> None:
        path = tmp_path / "x.conll"
        path.write_text("-DOCSTART- O\n\nAnn I-PER\nruns O\n\n\nHi O", encoding="utf-8")
        assert read_conll(path) == [
            TaggedSentence(("Ann", "runs"), ("I-PER", "O")),
            TaggedSentence(("Hi",), ("O",)),
        ]


class TestPieces:
    TEXTS = ("你好，世界。", "Hello, world!", "Don't say hello.", "世界很大。") * 5

    def test_encode_and_decode(self) -> None:
        tokenizer = train_bpe(self.TEXTS, 80)
        end_with_eos(tokenizer)
        ids = tokenizer.encode("Don't say hello, world!").ids
        assert ids[-1] == SPECIAL.index("</s>")
        assert tokenizer.decode(ids, skip_special_tokens=True) == "Don't say hello, world!"

    def test_the_target_pieces_come_first(self) -> None:
        target = [text for text in self.TEXTS if text.isascii()]
        tokenizer, size = target_first(train_bpe(self.TEXTS, 80), target)
        pieces = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
        assert tuple(pieces[:4]) == SPECIAL
        assert all("世" not in piece for piece in pieces[:size])
        assert max(tokenizer.encode("Don't say hello.").ids) < size
        assert max(tokenizer.encode("世界").ids) >= size


class TestWindows:
    CONTEXT = "The tower was built in 1889. " * 60 + "Its architect was Stephen Sauvestre."

    def test_windows_cover_the_context(self, trunk_tokenizer: Tokenizer) -> None:
        question = Question("1", "Who was the architect?", self.CONTEXT, ())
        windows = make_windows(trunk_tokenizer, question)
        covered = {place for window in windows for span in window.offsets for place in range(*span)}
        letters = {place for place, mark in enumerate(self.CONTEXT) if not mark.isspace()}
        assert covered == letters
        assert len(windows) > 1
        assert all(len(window.ids) <= LONGEST for window in windows)
        assert all(len(window.ids) == len(window.token_types) for window in windows)

    def test_the_answer_is_read_back(self, trunk_tokenizer: Tokenizer) -> None:
        text = "Stephen Sauvestre"
        start = self.CONTEXT.index(text)
        question = Question("1", "Who was the architect?", self.CONTEXT, ((text, start),))
        windows = make_windows(trunk_tokenizer, question)
        logits = []
        for window in windows:
            starts, ends = torch.zeros(LONGEST), torch.zeros(LONGEST)
            span = window.locate(start, start + len(text))
            if span is not None:
                starts[span[0]] = ends[span[1]] = 5.0
            logits.append((starts, ends))
        assert windows[0].locate(start, start + len(text)) is None
        assert best_answer(question, windows, logits) == text

    def test_an_empty_context_has_no_answer(self, trunk_tokenizer: Tokenizer) -> None:
        question = Question("1", "Who?", "", ())
        windows = make_windows(trunk_tokenizer, question)
        assert best_answer(question, windows, [(torch.zeros(9), torch.zeros(9))]) == ""


class TestTags:
    @pytest.mark.parametrize(
        ("tags", "bio"),
        [
            (["I-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]),
            (["I-PER", "I-LOC"], ["B-PER", "B-LOC"]),
            (["I-PER", "B-PER"], ["B-PER", "B-PER"]),
        ],
    )
    def test_every_entity_begins_with_b(self, tags: list[str], bio: list[str]) -> None:
        assert to_bio(tags) == bio

    def test_the_first_piece_of_a_word_bears_its_label(self, trunk_tokenizer: Tokenizer) -> None:
        sentence = TaggedSentence(("Kaczynski", "ran"), ("I-PER", "O"))
        ids, begins = encode_words(trunk_tokenizer, sentence)
        targets = targets_of(sentence, begins)
        assert len(ids) == len(targets) > 4
        assert targets[1] == LABELS.index("B-PER")
        assert targets[2] == -100
        assert [target for target in targets if target >= 0] == [1, 0]


class TestHelpers:
    def test_buckets_hold_every_row_once_within_the_limit(self) -> None:
        lengths = [3, 9, 1, 4, 9, 2, 7]
        batches = length_buckets(lengths, 12, random.Random(0))
        assert sorted(row for batch in batches for row in batch) == list(range(7))
        assert all(max(lengths[row] for row in batch) * len(batch) <= 12 for batch in batches)

    def test_padded(self) -> None:
        ids, mask = padded([[5, 6], [7]])
        assert ids.tolist() == [[5, 6], [7, 0]]
        assert mask.tolist() == [[1, 1], [1, 0]]

    @pytest.mark.parametrize(("step", "progress", "factor"), [(0, 0.0, 0.1), (9, 0.0, 1.0), (99, 1.0, 0.02)])
    def test_warm_cosine(self, step: int, progress: float, factor: float) -> None:
        assert warm_cosine(step, progress, warmup=10) == pytest.approx(factor)

    def test_a_budget_of_nothing_is_spent(self) -> None:
        assert not Budget(5).spent()
        assert Budget(1e-9).spent()

    def test_byte_dropout_keeps_the_mean(self) -> None:
        dropout = ByteDropout(0.25, np.random.default_rng(1)).train()
        states = torch.ones(200, 200)
        dropped = dropout(states)
        assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert dropped.mean().item() == pytest.approx(1, abs=0.02)
        assert torch.equal(dropout.eval()(states), states)

    def test_trainer_learns_in_bfloat16_and_averages_in_float32(self) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.0), nn.Linear(8, 1))
        trainer = Trainer(model, averaging=0.9)
        inputs = torch.randn(64, 4)
        target = inputs.sum(dim=1, keepdim=True)
        losses = []
        for _ in range(80):
            loss = (model(inputs.bfloat16()).float() - target).pow(2).mean()
            losses.append(loss.item())
            trainer.step(loss, 0.02)
        averaged = (trainer.average(inputs) - target).pow(2).mean().item()
        assert trainer.steps == 80
        assert averaged < losses[0] / 10
        assert all(value.dtype == torch.float32 for value in trainer.average.parameters())

    def test_frozen_weights_stay(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        model[0].requires_grad_(False)
        before = model[0].weight.detach().clone()
        trainer = Trainer(model, averaging=0.5, dtype=torch.float32)
        trainer.step(model(torch.ones(3, 2)).sum(), 0.1)
        assert torch.equal(model[0].weight, before)
        assert torch.equal(trainer.average[0].weight, before)

    def test_dropout_modules_are_replaced_everywhere(self) -> None:
        model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1)))
        use_byte_dropout(model, 1)
        assert not any(isinstance(module, nn.Dropout) for module in model.modules())
