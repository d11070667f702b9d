"""Decode heads: feature maps of four stages in, an embedding out; and what classifies it."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

DILATIONS = (1, 6, 12, 18)


def convolution(
    inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False
        ),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Pyramid(nn.Module):
    """Four maps of a plain vision transformer, all at stride 16, at strides 4, 8, 16 and 32.

    Transposed convolutions and a pooling, as in ViTDet's simple feature pyramid (Li et al., 2022),
    behind a normalisation: maps of different depth differ in scale.

    Attributes:
        channels: channels of the four maps that come out.
    """

    def __init__(self, channels: list[int]) -> None:
        """A pyramid over maps with `channels`."""
        super().__init__()
        first, second, third, fourth = channels
        self.channels = [first // 4, second // 2, third, fourth]
        self.norms = nn.ModuleList(LayerNorm2d(c) for c in channels)
        self.resize = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(first, first // 2, 2, 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(first // 2, first // 4, 2, 2),
                ),
                nn.ConvTranspose2d(second, second // 2, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """[(N, C_s, H / s, W / s) for s in (4, 8, 16, 32)] of [(N, C, H / 16, W / 16)] * 4."""
        return [
            resize(norm(feature))
            for norm, resize, feature in zip(self.norms, self.resize, features, strict=True)
        ]


class StageFusion(nn.Module):
    """1x1 embeddings of the stages, enlarged to the finest, concatenated and fused.

    DAFormer's head (Hoyer et al., CVPR 2022) with `AtrousPyramid` as the fusion; HRDA's scale
    attention (ECCV 2022) looks through one with a 1x1 `convolution`.
    """

    def __init__(
        self, stage_channels: list[int], channels: int, fusion: Callable[[int, int], nn.Module]
    ) -> None:
        """A head of width `channels` for stages with `stage_channels`."""
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in stage_channels)
        self.fusion = fusion(channels * len(stage_channels), channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Embedding (N, channels, H / 4, W / 4) of features [(N, C_s, H / s, W / s)]."""
        size = features[0].shape[-2:]
        stages = [
            enlarge(embed(feature), size)
            for embed, feature in zip(self.embeddings, features, strict=True)
        ]
        return self.fusion(torch.cat(stages, dim=1))


class AtrousPyramid(nn.Module):
    """DAFormer's context-aware fusion: depthwise separable, with rates 1, 6, 12 and 18."""

    def __init__(self, inputs: int, channels: int) -> None:
        """From `inputs` to `channels`."""
        super().__init__()
        self.pyramid = nn.ModuleList(
            convolution(inputs, channels)
            if rate == 1
            else nn.Sequential(
                convolution(inputs, inputs, 3, rate, groups=inputs), convolution(inputs, channels)
            )
            for rate in DILATIONS
        )
        self.bottleneck = convolution(channels * len(DILATIONS), channels, 3)

    def forward(self, stages: Tensor) -> Tensor:
        """(N, channels, h, w) of (N, inputs, h, w)."""
        return self.bottleneck(torch.cat([branch(stages) for branch in self.pyramid], dim=1))


class LastStage(nn.Module):
    """DeepLabV2 has no head but its classifier, which looks at the last feature map."""

    def forward(self, features: list[Tensor]) -> Tensor:
        """The last of the features."""
        return features[-1]


def create_projector(channels: int) -> nn.Sequential:
    """A small network (N, D, h, w) -> (N, D, h, w) of each cell by itself, as VFM-UDA++ has it.

    Features are compared with those of another encoder behind it, so that they need not equal them.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 4 * channels, 1),
        LayerNorm2d(4 * channels),
        nn.GELU(),
        nn.Conv2d(4 * channels, channels, 1),
    )


class Classifier(nn.Module):
    """Logits of an embedding: one 1x1 convolution, or DeepLabV2's sum of atrous ones.

    Dropout is not a layer but an argument: `stochastic` takes masks of the embedding's channels, so
    that what lies before runs once however many passes follow.
    """

    def __init__(
        self, channels: int, num_classes: int, kernel: int = 1, dilations: tuple[int, ...] = (1,)
    ) -> None:
        """A classifier of embeddings with `channels`."""
        super().__init__()
        self.kernel = kernel
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, num_classes, kernel, padding=rate * (kernel // 2), dilation=rate)
            for rate in dilations
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits (N, C, h, w) in float32 of an embedding (N, D, h, w), without dropout."""
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.float()
            return reduce(torch.add, (convolution(embedding) for convolution in self.convolutions))

    def stochastic(self, embedding: Tensor, masks: Tensor) -> Tensor:
        """Logits (K, N, C, h, w) in float32 of K stochastic passes.

        Args:
            embedding: (N, D, h, w).
            masks: (K, N, D), factors of the channels: 0 where dropped, 1 / (1 - dropout) elsewhere.

        Dropping channels before a convolution is dropping its weights, so that all passes of a
        sample are one convolution with K times the classes. A single pass of an atrous classifier
        drops the channels themselves: one convolution for all samples.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.float()
            if len(masks) == 1 and self.kernel > 1:
                return self(embedding * masks[0, :, :, None, None]).unsqueeze(0)
            return reduce(torch.add, (_masked(c, embedding, masks) for c in self.convolutions))


def _masked(convolution: nn.Module, embedding: Tensor, masks: Tensor) -> Tensor:
    """Logits (K, N, C, h, w) of a convolution whose weights are masked for each pass and sample."""
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    bias = convolution.bias.view(1, 1, -1, 1, 1)
    count, channels, height, width = embedding.shape
    if convolution.kernel_size == (1, 1):  # one matrix product for all samples
        weight = convolution.weight.view(1, 1, -1, channels)
        weights = (weight * masks.transpose(0, 1).unsqueeze(2)).flatten(1, 2)
        logits = torch.bmm(weights, embedding.flatten(2))
        return logits.view(count, len(masks), -1, height, width).transpose(0, 1) + bias
    samples = [
        functional.conv2d(
            sample.unsqueeze(0),
            (convolution.weight * mask[:, None, :, None, None]).flatten(0, 1),
            padding=convolution.padding,
            dilation=convolution.dilation,
        ).view(len(masks), -1, height, width)
        for sample, mask in zip(embedding, masks.transpose(0, 1), strict=True)
    ]
    return torch.stack(samples, dim=1) + bias


def enlarge(values: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear interpolation of (N, C, h, w) to (N, C, *size), in the values' own precision."""
    if values.shape[-2:] == size:
        return values
    with torch.autocast(values.device.type, enabled=False):
        if values.requires_grad:
            enlarged: Any = _Enlarging.apply(values, *size)
            return enlarged
        return functional.interpolate(values, size=size, mode="bilinear", align_corners=False)


class _Enlarging(torch.autograd.Function):
    """Bilinear interpolation whose gradient is two matrix products.

    PyTorch's own adds up in any order on CUDA, so that its bits differ from run to run; on the CPU
    it takes several times as long where channels come first.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, height: int, width: int) -> Tensor:
        ctx.size = values.shape[-2:]
        return torch.ops.aten.upsample_bilinear2d(values, [height, width], False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, columns = (
            _interpolation(small, large, gradient)
            for small, large in zip(ctx.size, gradient.shape[-2:], strict=True)
        )
        if gradient.is_contiguous() or not gradient.is_contiguous(
            memory_format=torch.channels_last
        ):
            return rows @ (gradient @ columns.T), None, None
        width = gradient.shape[-1]
        lines = (rows @ gradient.permute(0, 2, 3, 1).flatten(2)).unflatten(2, (width, -1))
        return (columns @ lines).permute(0, 3, 1, 2), None, None


def _interpolation(small: int, large: int, like: Tensor) -> Tensor:
    """Weights (small, large) of each of `small` values in each of `large` interpolated ones."""
    unit = torch.eye(small, dtype=like.dtype, device=like.device).unsqueeze(0)
    return functional.interpolate(unit, size=large, mode="linear", align_corners=False)[0]
