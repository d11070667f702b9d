"""What a step sees. The target's batch has no field for labels: they cannot leak."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SourceBatch:
    """Labelled images.

    Attributes:
        images: (N, 3, H, W) uint8, or float in [0, 1] after `to`.
        labels: (N, H, W) uint8, or int64 after `to`; train ids.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> SourceBatch:
        """On the device, in the types that networks and losses take."""
        labels = self.labels.to(device, non_blocking=True).long()
        return SourceBatch(_as_float(self.images, device), labels)


@dataclass(frozen=True)
class TargetBatch:
    """Images without labels.

    Attributes:
        images: (N, 3, H, W) uint8, or float in [0, 1] after `to`.
        counted: (N, H, W) bool, False on the rims whose pseudo labels never count.
    """

    images: Tensor
    counted: Tensor

    def to(self, device: torch.device) -> TargetBatch:
        """On the device, in the types that networks and losses take."""
        counted = self.counted.to(device, non_blocking=True)
        return TargetBatch(_as_float(self.images, device), counted)


@dataclass(frozen=True)
class EvaluationBatch:
    """Whole images of one size.

    Attributes:
        numbers: of the images in their split.
        images: (N, 3, h, w) uint8.
        labels: (H, W) uint8 of each image, at full size; None without a label.
    """

    numbers: list[int]
    images: Tensor
    labels: list[Tensor | None]


def _as_float(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).float() / 255.0
