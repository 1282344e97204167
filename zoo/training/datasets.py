"""Readers of the data sets; each split is the same on every run.

Nothing here is copied into the project: the folder is the caller's (`--data`).
"""

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation"]

DIGITS_TRAIN = 8_000
ENTITIES_TRAIN = 0.8

TOPICS = {
    "书籍": "books",
    "平板": "tablets",
    "手机": "mobile phones",
    "水果": "fruit",
    "洗发水": "shampoo",
    "热水器": "water heaters",
    "蒙牛": "Mengniu dairy",
    "衣服": "clothing",
    "计算机": "computers",
    "酒店": "hotels",
}
"""The ten product kinds of online_shopping_10_cats, in the order of the labels."""


@dataclass(frozen=True)
class Question:
    """A question about a context; `answers` are spans (text, first character)."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class TaggedSentence:
    """Words and their IOB tags, of the same number."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes in the IDX format of the MNIST files, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, dtype=">i4", count=rank, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_digits(folder: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [rows, 28, 28, 1] and labels int64 [rows]; the last 2,000 validate."""
    images = read_idx(folder / "digits" / "t10k-images-idx3-ubyte.gz")[..., np.newaxis]
    labels = read_idx(folder / "digits" / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
    rows = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    return images[rows], labels[rows]


def read_topics(folder: Path, split: Split) -> list[tuple[str, int]]:
    """Reviews with the number of their product kind in TOPICS."""
    number = {name: index for index, name in enumerate(TOPICS)}
    with (folder / "topics_zh" / f"{split}.csv").open(encoding="utf-8", newline="") as lines:
        return [(row["review"], number[row["cat"]]) for row in csv.DictReader(lines)]


def read_sentiment(folder: Path, split: Split) -> list[tuple[str, int]]:
    """SST-2 sentences with 0 (negative) or 1 (positive)."""
    name = "train.tsv" if split == "train" else "dev.tsv"
    lines = (folder / "sst2" / name).read_text(encoding="utf-8").splitlines()
    rows = (line.rsplit("\t", 1) for line in lines)
    return [(text, int(label)) for text, label in rows]


def read_tatoeba(folder: Path, split: Split) -> list[tuple[str, str]]:
    """Pairs (zh, en)."""
    path = folder / "translate_zh_en" / f"{split}.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(fields[0], fields[1]) for fields in (line.split("\t") for line in lines)]


def read_multi30k(folder: Path, split: Split) -> list[tuple[str, str]]:
    """Pairs (en, fr) of picture captions."""
    part = "train" if split == "train" else "val"
    sides = []
    for language in ("en", "fr"):
        raw = gzip.decompress((folder / "multi30k" / f"{part}.{language}.gz").read_bytes())
        sides.append(raw.decode("utf-8").strip("\n").split("\n"))
    return [(en.strip(), fr.strip()) for en, fr in zip(*sides, strict=True)]


def read_squad(path: Path) -> list[Question]:
    """Questions of a file in the SQuAD 1.1 format."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [
        make_question(question, paragraph["context"])
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def make_question(question: dict[str, Any], context: str) -> Question:
    """A Question from the entry of a SQuAD file."""
    answers = tuple((answer["text"], answer["answer_start"]) for answer in question["answers"])
    return Question(str(question["id"]), question["question"], context, answers)


def read_questions(folder: Path, split: Split) -> list[Question]:
    """SQuAD 1.1 and QED to train, SQuAD 1.1 alone to validate."""
    if split == "validation":
        return read_squad(folder / "qa" / "squad11_validation.json")
    qed = json.loads((folder / "qa" / "qed_train.json").read_text(encoding="utf-8"))
    return [
        *read_squad(folder / "qa" / "squad11_train.json"),
        *(make_question(question, question["context"]) for question in qed),
    ]


def read_conll(path: Path) -> list[TaggedSentence]:
    """Sentences of a CoNLL file: a word and its tag on each line, blank lines between."""
    sentences: list[TaggedSentence] = []
    words: list[str] = []
    tags: list[str] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        fields = line.split()
        if fields and fields[0] != "-DOCSTART-":
            words.append(fields[0])
            tags.append(fields[-1])
        elif words:
            sentences.append(TaggedSentence(tuple(words), tuple(tags)))
            words, tags = [], []
    return sentences


def read_entities(folder: Path, split: Split) -> list[TaggedSentence]:
    """wikigold: its first 80 % of sentences train, the rest validates."""
    sentences = read_conll(folder / "ner" / "wikigold.conll.txt")
    cut = int(len(sentences) * ENTITIES_TRAIN)
    return sentences[:cut] if split == "train" else sentences[cut:]


def source_files(model: str, folder: Path) -> Sequence[Path]:
    """The files that a model is trained and validated on."""
    names = {
        "digits": ("digits/t10k-images-idx3-ubyte.gz", "digits/t10k-labels-idx1-ubyte.gz"),
        "topics-zh": ("topics_zh/train.csv", "topics_zh/validation.csv"),
        "translate-zh-en": ("translate_zh_en/train.tsv", "translate_zh_en/validation.tsv"),
        "translate-en-fr": tuple(
            f"multi30k/{part}.{language}.gz" for part in ("train", "val") for language in ("en", "fr")
        ),
        "qa": ("qa/squad11_train.json", "qa/qed_train.json", "qa/squad11_validation.json"),
        "sentiment": ("sst2/train.tsv", "sst2/dev.tsv"),
        "entities": ("ner/wikigold.conll.txt",),
    }
    return [folder / name for name in names[model]]
