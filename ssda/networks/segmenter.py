"""The segmentation network: encoder, decode head, dropout, classifier."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ssda.networks.encoders import Encoder
from ssda.networks.heads import DAFormerHead


class Segmenter(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to logits (N, C, H / 4, W / 4).

    Dropout is not a layer but an argument: `classify` takes masks of the embedding's channels, so
    that the trunk runs once however many stochastic passes follow. Training drops channels too;
    passes with dropout are draws from a posterior only of a network that has learnt with it.
    """

    def __init__(self, encoder: str, channels: int, dropout: float, num_classes: int) -> None:
        """A network without weights; ValueError for an unknown encoder."""
        super().__init__()
        self.dropout = dropout
        self.encoder = Encoder(encoder)
        self.head = DAFormerHead(self.encoder.channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C, H / 4, W / 4) without dropout."""
        return self.classifier(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """What the classifier sees, (N, channels, H / 4, W / 4)."""
        return self.head(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Features of the encoder's four stages."""
        return self.encoder(images.contiguous(memory_format=torch.channels_last))

    def classify(self, embedding: Tensor, masks: Tensor) -> Tensor:
        """Logits (K, N, C, h, w) of K stochastic passes.

        Args:
            embedding: (N, D, h, w).
            masks: (K, N, D), factors of the channels: 0 where dropped, 1 / (1 - dropout) elsewhere.

        Dropping channels before a 1x1 convolution is dropping its weights, so that all passes are
        one matrix product.
        """
        count, channels, height, width = embedding.shape
        weight = self.classifier.weight.view(1, 1, -1, channels)
        weights = (weight * masks.transpose(0, 1).unsqueeze(2)).flatten(1, 2)
        logits = torch.bmm(weights.to(embedding.dtype), embedding.flatten(2))
        logits = logits.view(count, len(masks), -1, height, width).transpose(0, 1)
        assert self.classifier.bias is not None
        return logits + self.classifier.bias.view(1, 1, -1, 1, 1)

    def classify_once(self, embedding: Tensor, generators: list[np.random.Generator]) -> Tensor:
        """Logits (N, C, h, w) of one stochastic pass, as training takes them."""
        return self.classify(embedding, self.draw_masks(1, generators))[0]

    def draw_masks(self, passes: int, generators: list[np.random.Generator]) -> Tensor:
        """Dropout masks (K, N, D) for `classify`, a generator a sample; on the network's device."""
        keep = 1.0 - self.dropout
        channels = self.classifier.in_channels
        drawn = np.stack([rng.random((passes, channels)) < keep for rng in generators], axis=1)
        masks = torch.from_numpy(drawn.astype(np.float32) / keep)
        return masks.to(self.classifier.weight.device)
