"""The convolutional network of `digits`: handwritten digits, 28 by 28 pixels."""

import torch
from torch import Tensor, nn


class Digits(nn.Module):
    """Conv 32 3x3, MaxPool, Conv 64 3x3, MaxPool, Dense 64, Dense 10."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution_1 = nn.Conv2d(1, 32, kernel_size=3)
        self.convolution_2 = nn.Conv2d(32, 64, kernel_size=3)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(64 * 5 * 5, 64)
        self.output = nn.Linear(64, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, image: Tensor) -> Tensor:
        """Image uint8 [batch, 28, 28, 1], white on black -> logits float32 [batch, 10]."""
        pixels = image.permute(0, 3, 1, 2).to(self.output.weight.dtype) / 255.0
        states = self.pool(torch.relu(self.convolution_1(pixels)))
        states = self.pool(torch.relu(self.convolution_2(states)))
        states = torch.relu(self.hidden(self.dropout(states.flatten(1))))
        logits: Tensor = self.output(self.dropout(states))
        return logits
