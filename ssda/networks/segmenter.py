"""The segmentation network: encoder, decode head, classifier; at one resolution or at two.

With two resolutions (HRDA, Hoyer et al., ECCV 2022) the same network sees the whole image at half
its size, the context, and a part of it at full size, the detail. An attention over classes and
places, seen from the context, says how much the detail counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssda.networks.encoders import COARSEST, DILATED_STRIDE, STRIDES, Encoder
from ssda.networks.heads import (
    AtrousPyramid,
    Classifier,
    LastStage,
    Pyramid,
    StageFusion,
    convolution,
)
from ssda.networks.stochastic_depth import draw_factors
from ssda.networks.windows import Corner, cut, draw_corners, fuse, halve, pad_to, slide
from ssda.params import Model
from ssda.processes import WHOLE
from ssda.tensors import on_device

DEEPLAB_RATES = (6, 12)
WINDOWS = 9
"""Of each image in a pass without gradients: all that slide over a training crop. However large an
image is, a pass holds no more."""


@dataclass(frozen=True)
class Views:
    """What a training pass gives.

    Attributes:
        logits: (K, N, C, h, w) float32 of K stochastic passes; fused where there are two
            resolutions.
        detail: (K, N, C, h / 2, w / 2) of the detail crops alone; None with one resolution.
        corners: (y, x) of each image's detail crop, in pixels, of the whole batch; empty with one
            resolution.
        features: the encoder's maps; with two resolutions those of the context.
        part: which images of the batch were seen.
    """

    logits: Tensor
    detail: Tensor | None
    corners: list[Corner]
    features: list[Tensor]
    part: slice


@dataclass(frozen=True)
class Prediction:
    """What the network says of images, as evaluation and the teacher use it.

    Attributes:
        logits: (N, C, h, w) float32 without dropout; fused where there are two resolutions.
        members: (K, N, C, h, w) float32 of K stochastic passes; K = 0 where none was asked for.
        context: (N, C, h / 2, w / 2) of the context alone; None with one resolution.
        detail: (N, C, h, w) of the details alone; None with one resolution.
    """

    logits: Tensor
    members: Tensor
    context: Tensor | None = None
    detail: Tensor | None = None


class Segmenter(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to logits (N, C, H / s, W / s), s the attribute `stride`.

    Training drops channels before the classifier too; passes with dropout are draws from a
    posterior only of a network that has learnt with it. A mask is a draw of the network: with two
    resolutions a pass drops the same channels in both, and skips the same branches.
    """

    def __init__(self, model: Model, num_classes: int) -> None:
        """A network without weights; ValueError for an unknown encoder."""
        super().__init__()
        self.num_classes = num_classes
        self.dropout = model.dropout
        self.detail = None if model.detail is None else (model.detail[1], model.detail[0])
        self.encoder = Encoder(model)
        channels = self.encoder.channels
        self.pyramid: Pyramid | None = None
        if model.head == "daformer" and self.encoder.strides != list(STRIDES):
            self.pyramid = Pyramid(channels)
            channels = self.pyramid.channels
        if model.head == "daformer":
            self.stride = STRIDES[0]
            self.width = model.channels
            self.head: nn.Module = StageFusion(channels, self.width, AtrousPyramid)
        else:
            self.stride = DILATED_STRIDE
            self.width = channels[-1]
            self.head = LastStage()
        self.classifier = _classifier(model, self.width, num_classes)
        self.attention: nn.Module | None = None
        if self.detail is not None:
            seen = (
                StageFusion(channels, self.width, convolution)
                if model.head == "daformer"
                else LastStage()
            )
            self.attention = nn.Sequential(seen, _classifier(model, self.width, num_classes))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.encoder.mean.device

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile encoder and heads, what is before the classifier; weights keep their names."""
        for part in (self.encoder, self.pyramid, self.head, self.attention):
            if part is not None:
                part.compile(*args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C, H / s, W / s) without dropout."""
        return self.predict(images).logits

    def pad(self, images: Tensor) -> Tensor:
        """Images continued at the right and the bottom until all grids fit them."""
        if self.detail is None:
            return pad_to(images, self.encoder.grid, COARSEST)
        return pad_to(images, 2 * max(self.encoder.grid, self.stride), 2 * COARSEST)

    def context(self, images: Tensor) -> Tensor:
        """What a whole image is seen at: half its size with two resolutions."""
        return images if self.detail is None else halve(images)

    def encode(self, images: Tensor, depth: Tensor | None = None) -> list[Tensor]:
        """The encoder's four feature maps; `depth` as `draw_depth` gives it."""
        self.encoder.skip(depth)
        return self.encoder(images)

    def embed(self, images: Tensor) -> Tensor:
        """What the classifier sees of one view, (N, D, h, w)."""
        return self._decode(self.encode(images))

    def observe(
        self,
        images: Tensor,
        masks: Tensor,
        corners: list[Corner],
        depth: Tensor | None = None,
        part: slice = WHOLE,
    ) -> Views:
        """K stochastic passes on one trunk, for training; all normalised as one batch.

        Args:
            images: (N, 3, H, W); with two resolutions H and W are multiples of 64.
            masks: (K, N, D), as `draw_masks` gives them.
            corners: of the detail crops, which have half the sides of the images, as
                `draw_corners` gives them; empty with one resolution.
            depth: (L, N), as `draw_depth` gives it; without it no branch is skipped.
            part: which of the images to look at.
        """
        images, masks, own_corners = images[part], masks[:, part], corners[part]
        depth = None if depth is None else depth[:, part]
        if self.detail is None:
            features = self.encode(images, depth)
            logits = self.classifier.stochastic(self._decode(features), masks)
            return Views(logits, None, corners, features, part)
        count = len(images)
        context = self.context(images)
        detail = cut(images, own_corners, (context.shape[-2], context.shape[-1]))
        both = None if depth is None else depth.repeat(1, 2)
        features = self.encode(torch.cat([context, detail]), both)
        embedding = self._decode(features)
        features = [feature[:count] for feature in features]
        logits = self.classifier.stochastic(embedding, masks.repeat(1, 2, 1))
        low, high = logits.split(count, dim=1)
        return Views(self._fuse(features, low, high, own_corners), high, corners, features, part)

    def predict(self, images: Tensor, masks: Tensor | None = None) -> Prediction:
        """What the network says of images of any size; the details slide over them by half.

        Args:
            images: (N, 3, H, W).
            masks: (K, N, D) for K stochastic passes beside the one without dropout.
        """
        # No -(-a // b): ONNX, to which this is exported, rounds to 0.
        size = [(side + self.stride - 1) // self.stride for side in images.shape[-2:]]
        images = self.pad(images)
        if self.detail is None:
            logits = self._logits(self.embed(images), masks)
            logits = logits[..., : size[0], : size[1]]
            return Prediction(logits[0], logits[1:])
        features = self.encode(self.context(images))
        low = self._logits(self._decode(features), masks)
        window = (min(self.detail[0], images.shape[-2]), min(self.detail[1], images.shape[-1]))

        def see(crops: Tensor) -> Tensor:
            repeated = masks.repeat(1, len(crops) // len(images), 1) if masks is not None else None
            return self._logits(self.embed(crops), repeated)

        step = (window[0] // 2, window[1] // 2)
        high = slide(images, window, step, WINDOWS, see)
        fused = self._fuse(features, low, high)[..., : size[0], : size[1]]
        return Prediction(fused[0], fused[1:], low[0], high[0])

    def draw(
        self, size: tuple[int, ...], passes: int, generators: list[np.random.Generator]
    ) -> tuple[Tensor, list[Corner], Tensor | None]:
        """Dropout masks, detail crops and stochastic depth for images of `size`, for `observe`."""
        masks = self.draw_masks(passes, generators)
        corners = self.draw_corners(size, generators)
        return masks, corners, self.draw_depth(generators)

    def draw_masks(self, passes: int, generators: list[np.random.Generator]) -> Tensor:
        """Dropout masks (K, N, D), a generator a sample; on the network's device."""
        keep = 1.0 - self.dropout
        drawn = np.stack([rng.random((passes, self.width)) < keep for rng in generators], axis=1)
        return on_device(drawn.astype(np.float32) / np.float32(keep), self.device)

    def draw_depth(self, generators: list[np.random.Generator]) -> Tensor | None:
        """Factors (L, N) of stochastic depth, a generator a sample; None where there is none."""
        if not self.encoder.depths:
            return None
        return on_device(draw_factors(self.encoder.depths, generators), self.device)

    def draw_corners(
        self, size: tuple[int, ...], generators: list[np.random.Generator]
    ) -> list[Corner]:
        """A detail crop for each image of `size`, on both grids; none with one resolution."""
        if self.detail is None:
            return []
        return draw_corners(size, (size[0] // 2, size[1] // 2), 2 * self.stride, generators)

    def _decode(self, features: list[Tensor]) -> Tensor:
        with self.encoder.autocast():
            return self.head(self._levels(features))

    def _levels(self, features: list[Tensor]) -> list[Tensor]:
        return features if self.pyramid is None else self.pyramid(features)

    def _fuse(
        self, context: list[Tensor], low: Tensor, high: Tensor, corners: list[Corner] | None = None
    ) -> Tensor:
        """Logits of both resolutions as one, by the attention that is seen from the context.

        Args:
            context: its feature maps.
            low: (K, N, C, h, w), logits of the context.
            high: those of details all over it, or of a crop for each image at its corner in pixels.
            corners: of the crops.
        """
        assert self.attention is not None
        with self.encoder.autocast():
            attention = self.attention(self._levels(context)).sigmoid()
        cells = corners and [(y // self.stride, x // self.stride) for y, x in corners]
        return fuse(low, high, attention, cells)

    def _logits(self, embedding: Tensor, masks: Tensor | None) -> Tensor:
        """(1 + K, N, C, h, w): without dropout, then with each mask."""
        plain = self.classifier(embedding).unsqueeze(0)
        if masks is None:
            return plain
        return torch.cat([plain, self.classifier.stochastic(embedding, masks)])


def stochastic_pass(
    network: Segmenter, images: Tensor, passes: int, generators: list[np.random.Generator]
) -> Views:
    """A training pass: dropout masks, detail crops and stochastic depth drawn from generators.

    Args:
        network: in training mode.
        images: (N, 3, H, W) in [0, 1].
        passes: K, passes that follow the one trunk.
        generators: one an image.
    """
    return network.observe(images, *network.draw(images.shape[-2:], passes, generators))


def _classifier(model: Model, channels: int, num_classes: int) -> Classifier:
    if model.head == "daformer":
        return Classifier(channels, num_classes)
    return Classifier(channels, num_classes, kernel=3, dilations=DEEPLAB_RATES)
