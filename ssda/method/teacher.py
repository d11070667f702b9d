"""The teacher: an exponential moving average of the student, and its pseudo labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssda.labels import IGNORE
from ssda.processes import summed
from ssda.tensors import copy_all, of_one_type

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def create_teacher(student: ModuleType) -> ModuleType:
    """A copy of the student in evaluation mode, whose weights never get gradients."""
    return frozen(copy.deepcopy(student))


def frozen(network: ModuleType) -> ModuleType:
    """The network in evaluation mode, without gradients."""
    return network.requires_grad_(False).eval()


def moving_average(
    teacher: nn.Module, student: nn.Module, momentum: float
) -> Callable[[int], None]:
    """What makes teacher = a teacher + (1 - a) student after a step t, given its number.

    a = min(1 - 1 / (t + 1), momentum). Buffers (the running statistics, which only target images
    fill) are averaged as the weights are; whole numbers are copied. The networks must keep their
    tensors: they are looked up once.
    """
    averages, news = (of_one_type(n.state_dict().values()) for n in (teacher, student))

    def update(step: int) -> None:
        kept = min(1.0 - 1.0 / (step + 1), momentum)
        for average, new in zip(averages, news, strict=True):
            if average[0].is_floating_point():
                torch._foreach_lerp_(average, new, 1.0 - kept)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            else:
                copy_all(new, average)

    return update


@dataclass(frozen=True)
class PseudoLabels:
    """What the teacher says of a target batch.

    Attributes:
        labels: (N, H, W) int64 arg max; IGNORE on the rims that never count.
        weights: (N, H, W) float32, how much a pixel counts: q or 1[certain]; 0 on the rims.
        certain_share: scalar q, the share of counted pixels with a confidence above the threshold.
    """

    labels: Tensor
    weights: Tensor
    certain_share: Tensor


def pseudo_labels(
    probabilities: Tensor, counted: Tensor, *, threshold: float, weighting: str
) -> PseudoLabels:
    """Labels, weights and q of the teacher's probabilities.

    Args:
        probabilities: (N, C, H, W) of the teacher without dropout.
        counted: (N, H, W) bool, False on the rims (bonnet, rectified borders).
        threshold: a confidence of at least this is certain.
        weighting: "share" weighs counted pixels q each, "pixel" 1 where certain and 0 elsewhere.
    """
    confidence, labels = probabilities.max(dim=1)
    certain = (confidence >= threshold) & counted
    pixels = summed(torch.stack([certain.sum(), counted.sum()]))
    share = pixels[0] / pixels[1].clamp_min(1)
    weights = certain.float() if weighting == "pixel" else share * counted.float()
    return PseudoLabels(labels.masked_fill(~counted, IGNORE), weights, share)
