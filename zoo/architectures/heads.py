"""The heads on the shared trunk; each is exported to ONNX with dynamic batch and length.

All inputs are int64 [batch, seq]; attention_mask is 1 on text and 0 on padding.
"""

import torch
from torch import Tensor, nn
from transformers import BertModel


def mean_pool(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of [batch, seq, width] over the positions that are not padding -> [batch, width]."""
    weight = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)


class SequenceClassifier(nn.Module):
    """One label for a text: a dense layer on the mean of the token states."""

    def __init__(self, trunk: BertModel, labels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(trunk.config.hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [batch, labels]."""
        states = self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits: Tensor = self.head(self.dropout(mean_pool(states, attention_mask)))
        return logits


class TokenClassifier(nn.Module):
    """A label for every token."""

    def __init__(self, trunk: BertModel, labels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(trunk.config.hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [batch, seq, labels]."""
        states = self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits: Tensor = self.head(self.dropout(states))
        return logits


class SpanExtractor(nn.Module):
    """The first and the last token of an answer in a text.

    The input is [CLS] question [SEP] context [SEP]; token_type_ids are 0 up to the first
    [SEP] and 1 after it.
    """

    def __init__(self, trunk: BertModel) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(trunk.config.hidden_size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        """start_logits and end_logits, each [batch, seq]; mask all but the context yourself."""
        states = self.trunk(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        start, end = torch.unbind(self.head(self.dropout(states)), dim=-1)
        return start, end


class SentenceEncoder(nn.Module):
    """The trunk as it is: an embedding of the text and one of each token."""

    def __init__(self, trunk: BertModel) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """sentence_embedding [batch, 384], mean-pooled and not normalised; token_embeddings
        [batch, seq, 384].
        """
        states: Tensor = self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return mean_pool(states, attention_mask), states
