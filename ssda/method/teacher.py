"""The teacher: an exponential moving average of the student, and its pseudo labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssda.labels import IGNORE
from ssda.processes import summed

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def create_teacher(student: ModuleType) -> ModuleType:
    """A copy of the student in evaluation mode, whose weights never get gradients."""
    teacher = copy.deepcopy(student).eval()
    teacher.requires_grad_(False)
    return teacher


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, step: int, momentum: float) -> None:
    """Teacher = a teacher + (1 - a) student with a = min(1 - 1 / (step + 1), momentum).

    Buffers (the running statistics, which only target images fill) are averaged as the weights
    are; whole numbers are copied.
    """
    share = min(1.0 - 1.0 / (step + 1), momentum)
    averaged: list[Tensor] = []
    current: list[Tensor] = []
    student_state = student.state_dict()
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            averaged.append(value)
            current.append(student_state[name])
        else:
            value.copy_(student_state[name])
    torch._foreach_lerp_(averaged, current, 1.0 - share)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


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
    share = summed(certain.sum()) / summed(counted.sum()).clamp_min(1)
    weights = certain.float() if weighting == "pixel" else share * counted.float()
    return PseudoLabels(labels.masked_fill(~counted, IGNORE), weights, share)
