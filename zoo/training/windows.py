"""Questions and their contexts as windows of bounded length, and answers read out of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from zoo.training.datasets import Question

CLS, SEP = 101, 102
LONGEST, STRIDE, LONGEST_QUESTION, LONGEST_ANSWER = 256, 128, 48, 30


@dataclass(frozen=True)
class Window:
    """[CLS] question [SEP] a stretch of the context [SEP].

    first: where the stretch begins in `ids`; offsets: first and last + 1 character in the
    context of each of its tokens.
    """

    ids: list[int]
    first: int
    offsets: list[tuple[int, int]]

    @property
    def token_types(self) -> list[int]:
        """0 up to the first [SEP], 1 after it."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)

    def locate(self, start: int, end: int) -> tuple[int, int] | None:
        """Positions in `ids` of the first and last token of the characters [start, end)."""
        inside = [i for i, (a, b) in enumerate(self.offsets) if a < end and b > start]
        if not inside or self.offsets[inside[0]][0] > start or self.offsets[inside[-1]][1] < end:
            return None
        return self.first + inside[0], self.first + inside[-1]


def make_windows(tokenizer: Tokenizer, question: Question) -> list[Window]:
    """Windows of LONGEST ids over the context, each STRIDE tokens after the one before."""
    asked = tokenizer.encode(question.question, add_special_tokens=False).ids[:LONGEST_QUESTION]
    context = tokenizer.encode(question.context, add_special_tokens=False)
    head = [CLS, *asked, SEP]
    room = LONGEST - len(head) - 1
    windows: list[Window] = []
    start = 0
    while True:
        stretch = slice(start, start + room)
        ids = [*head, *context.ids[stretch], SEP]
        windows.append(Window(ids, len(head), context.offsets[stretch]))
        if start + room >= len(context.ids):
            return windows
        start += STRIDE


def best_span(window: Window, start: Tensor, end: Tensor) -> tuple[float, int, int]:
    """The likeliest answer of a window: score, first and last + 1 character in the context.

    start, end: logits [seq] of the window, with or without padding after it.
    """
    inside = slice(window.first, window.first + len(window.offsets))
    pairs = start[inside].unsqueeze(1) + end[inside].unsqueeze(0)
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    pairs = pairs.masked_fill(~allowed, float("-inf"))
    place = int(pairs.argmax().item())
    first, last = divmod(place, pairs.shape[1])
    return pairs[first, last].item(), window.offsets[first][0], window.offsets[last][1]


def best_answer(question: Question, windows: Sequence[Window], logits: Sequence[tuple[Tensor, Tensor]]) -> str:
    """The text of the best span over all windows of a question."""
    spans = [best_span(w, s, e) for w, (s, e) in zip(windows, logits, strict=True) if w.offsets]
    if not spans:
        return ""
    _, start, end = max(spans)
    return question.context[start:end]
