"""Training of the BPE tokenizers of the models that have their own."""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def train_bpe(texts: Iterable[str], size: int, *, limit_alphabet: int = 6000) -> Tokenizer:
    """A BPE tokenizer of at most `size` entries; ids 0 to 3 are SPECIAL.

    Words begin with `▁`, as in SentencePiece; a mark of punctuation is a piece of its own.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Split(Regex(r"[^\p{L}\p{M}\p{N}'▁]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        limit_alphabet=limit_alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def end_with_eos(tokenizer: Tokenizer) -> None:
    """Let `encode` append `</s>`, as a translation's encoder expects."""
    end = SPECIAL.index("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])


def target_first(tokenizer: Tokenizer, target: Sequence[str]) -> tuple[Tokenizer, int]:
    """Renumber the pieces so that those which can occur in `target` texts come first.

    Returns the tokenizer and how many they are: a decoder needs no other ids.
    """
    alphabet = set("▁")
    for text in target:
        alphabet.update(tokenizer.normalizer.normalize_str(text))
    state = json.loads(tokenizer.to_str())
    pieces = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    possible = [piece for piece in pieces if piece in SPECIAL or alphabet.issuperset(piece)]
    others = [piece for piece in pieces if piece not in set(possible)]
    state["model"]["vocab"] = {piece: number for number, piece in enumerate([*possible, *others])}
    return Tokenizer.from_str(json.dumps(state)), len(possible)
