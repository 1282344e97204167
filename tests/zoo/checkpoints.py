"""Small random checkpoints as `save_pretrained` writes them, one for each architecture that is tested."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

ENGLISH = (
    "The cat sits on the mat.",
    "A dog runs in the park.",
    "We like to read books in the evening.",
    "Tomorrow it will rain again.",
)
FRENCH = (
    "Le chat est assis sur le tapis.",
    "Un chien court dans le parc.",
    "Nous aimons lire des livres le soir.",
    "Demain il pleuvra encore.",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT = {
    "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer with BERT's special tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator([*ENGLISH, *FRENCH], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=48,
    ).save_pretrained(folder)  # fmt: skip


def save_text_model(folder: Path, kind: str) -> Path:
    """A checkpoint for a text task; ``kind`` is one of ``makers``. ``cls`` is pooled by its first token."""
    torch.manual_seed(7)
    labels = {"id2label": {0: "bad", 1: "good", 2: "mixed"}, "label2id": {"bad": 0, "good": 1, "mixed": 2}}
    tags = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}
    makers = {
        "classification": lambda: BertForSequenceClassification(BertConfig(**BERT, **labels)),
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)
        ),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**{**BERT, "type_vocab_size": 1}, **labels)),
        "tokens": lambda: BertForTokenClassification(BertConfig(**BERT, **tags)),
        "questions": lambda: BertForQuestionAnswering(BertConfig(**BERT)),
        "embeddings": lambda: BertModel(BertConfig(**BERT)),
        "cls": lambda: BertModel(BertConfig(**BERT)),
    }
    makers[kind]().save_pretrained(folder)
    save_tokenizer(folder)
    if kind == "cls":
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def save_image_model(folder: Path, kind: str) -> Path:
    """A checkpoint for image classification; ``kind``: vit, resnet."""
    torch.manual_seed(7)
    classes = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    common = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255}
    if kind == "vit":
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
            patch_size=8, **classes,
        )  # fmt: skip
        ViTForImageClassification(config).save_pretrained(folder)
        processor = {
            **common, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
            "size": {"height": 32, "width": 32}, "image_processor_type": "ViTImageProcessor",
        }  # fmt: skip
    else:
        shape = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **classes)
        ResNetForImageClassification(shape).save_pretrained(folder)
        processor = {
            **common, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3,
            "size": {"shortest_edge": 56}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor",
        }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_marian(folder: Path) -> Path:
    """A MarianMT checkpoint with two SentencePiece models and one vocabulary, as OPUS-MT has them."""
    folder.mkdir(parents=True)
    vocabulary = {"</s>": 0, "<unk>": 1}
    for name, lines in (("source", ENGLISH), ("target", FRENCH)):
        buffer = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 20), model_writer=buffer, vocab_size=60, hard_vocab_limit=False,
            minloglevel=2,
        )  # fmt: skip
        (folder / f"{name}.spm").write_bytes(buffer.getvalue())
        pieces = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
        for index in range(pieces.get_piece_size()):
            if pieces.id_to_piece(index) != "<s>":
                vocabulary.setdefault(pieces.id_to_piece(index), len(vocabulary))
    vocabulary[">>fra<<"] = len(vocabulary)
    padding = vocabulary["<pad>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    torch.manual_seed(7)
    config = MarianConfig(
        vocab_size=len(vocabulary), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
        scale_embedding=True, activation_function="swish", init_std=0.5, pad_token_id=padding, eos_token_id=0,
        decoder_start_token_id=padding, forced_eos_token_id=0,
    )  # fmt: skip
    model = MarianMTModel(config)
    model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    return folder
