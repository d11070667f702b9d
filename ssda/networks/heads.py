"""Decode heads: features of four stages in, an embedding on the finest stage's grid out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
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


class DAFormerHead(nn.Module):
    """DAFormer's context-aware fusion (Hoyer et al., CVPR 2022).

    1x1 embeddings of the stages are enlarged to the finest, concatenated, and fused by a
    depthwise separable atrous spatial pyramid with rates 1, 6, 12 and 18.
    """

    def __init__(self, stage_channels: list[int], channels: int) -> None:
        """A head of width `channels` for stages with `stage_channels`."""
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in stage_channels)
        fused = channels * len(stage_channels)
        self.pyramid = nn.ModuleList(
            convolution(fused, channels)
            if rate == 1
            else nn.Sequential(
                convolution(fused, fused, 3, rate, groups=fused), convolution(fused, channels)
            )
            for rate in DILATIONS
        )
        self.bottleneck = convolution(channels * len(DILATIONS), channels, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Embedding (N, channels, H / 4, W / 4) of features [(N, C_s, H / s, W / s)]."""
        size = features[0].shape[-2:]
        stages = torch.cat(
            [
                enlarge(embed(feature), size)
                for embed, feature in zip(self.embeddings, features, strict=True)
            ],
            dim=1,
        )
        return self.bottleneck(torch.cat([branch(stages) for branch in self.pyramid], dim=1))


def enlarge(values: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear interpolation of (N, C, h, w) to (N, C, *size)."""
    if values.shape[-2:] == size:
        return values
    return functional.interpolate(values, size=size, mode="bilinear", align_corners=False)
