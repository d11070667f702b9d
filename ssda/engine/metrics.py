"""Scores from a confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(
    prediction: Tensor, target: Tensor, *, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Counts of (truth, prediction) pairs.

    Args:
        prediction: integer class of each pixel, any shape; in [0, num_classes).
        target: truth, of the same shape; pixels of ignore_index do not count.
        num_classes: C.
        ignore_index: truth that does not count.

    Returns:
        (C, C) int64, rows are the truth.

    Raises:
        ValueError: shapes differ, or a class is out of range.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
    counted = target != ignore_index
    truth = target[counted].long()
    guess = prediction[counted].long()
    for name, values in (("prediction", guess), ("target", truth)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(
                f"{name} has class {int(values.max())}, allowed are 0 to {num_classes - 1}"
            )
    pairs = torch.bincount(truth * num_classes + guess, minlength=num_classes**2)
    return pairs.view(num_classes, num_classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """IoU of each class in per cent, (C,) float64; NaN where neither side has the class."""
    counts = confusion.double()
    hits = counts.diagonal()
    return 100.0 * hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(confusion: Tensor, classes: tuple[int, ...] | None = None) -> float | None:
    """MIoU in per cent over the classes that the truth shows; None where it shows none.

    A class that the truth never shows is left out of the mean, and where `classes` are given, so
    are all others.
    """
    shown = confusion.sum(1) > 0
    if classes is not None:
        wanted = torch.zeros_like(shown)
        wanted[list(classes)] = True
        shown &= wanted
    values = intersection_over_union(confusion)[shown]
    return float(values.mean()) if len(values) else None


def pixel_accuracy(confusion: Tensor) -> float | None:
    """Share of labelled pixels that are right, in per cent; None without labelled pixels."""
    total = int(confusion.sum())
    return 100.0 * int(confusion.diagonal().sum()) / total if total else None
