"""The recurrent network of `topics-zh`: the kind of product that a review is about."""

import torch
from torch import Tensor, nn


class Topics(nn.Module):
    """Embedding(10000, 64), bidirectional LSTM(64), Dense 64, Dense 10.

    The LSTM is one that masks: the state does not move where attention_mask is 0, so padding
    cannot reach the logits in either direction.
    """

    def __init__(self, vocabulary: int = 10_000, labels: int = 10, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64, padding_idx=0)
        # Rare pieces stay near their start: a large one would be noise in every maximum.
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = nn.LSTM(64, 64, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(128, 64)
        self.output = nn.Linear(64, labels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask int64 [batch, seq], padded on the right -> logits [batch, 10].

        Max pooling over the real positions. At least one position per row is taken as real.
        """
        embedded = self.dropout(self.embedding(input_ids))
        lengths = attention_mask.sum(dim=1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, padding_value=-1.0e4)
        pooled = states.amax(dim=1)
        logits: Tensor = self.output(self.dropout(torch.relu(self.hidden(self.dropout(pooled)))))
        return logits
