"""Scores from a confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ssda.labels import IGNORE


def confusion_matrix(
    prediction: Tensor, target: Tensor, *, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Counts of (truth, prediction) pairs.

    Args:
        prediction: integer class of each pixel, any shape; in [0, num_classes).
        target: truth, of the same shape; pixels of ignore_index do not count.
        num_classes: C, at most 255.
        ignore_index: truth that does not count.

    Returns:
        (C, C) int64, rows are the truth.

    Raises:
        ValueError: shapes differ, or a class is out of range.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
    most = IGNORE
    if target.dtype != torch.uint8 or ignore_index != IGNORE:
        counted = target != ignore_index
        prediction, target, most = prediction[counted], target[counted], num_classes - 1
    for name, values, last in (
        ("prediction", prediction, num_classes - 1),
        ("target", target, most),
    ):
        low, high = (int(v) for v in values.aminmax()) if values.numel() else (0, 0)
        if low < 0 or high > last:
            raise _wrong_class(name, low if low < 0 else high, num_classes)
    return known_classes(pair_counts(prediction, target, num_classes))


def pair_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts (256, C) int64 of (truth, prediction), truths that are no class included.

    On CUDA nothing is read off the device.

    Args:
        prediction: integer class of each pixel, any shape; in [0, C), which is not checked.
        target: truth, of the same shape; in [0, 255], which is not checked.
        num_classes: C.
    """
    bins = (IGNORE + 1) * num_classes
    small = torch.int16 if bins <= 2**15 else torch.int64
    pairs = (target.to(small) * num_classes + prediction.to(small)).flatten()
    counts = (
        scattered_counts(pairs, bins) if pairs.is_cuda else torch.bincount(pairs, minlength=bins)
    )
    return counts.view(-1, num_classes)


def known_classes(counts: Tensor) -> Tensor:
    """The confusion matrix (C, C) in what `pair_counts` gives; 255 does not count.

    Raises ValueError where the truth has another byte that is no class.
    """
    num_classes = counts.shape[1]
    if wrong := counts[num_classes:IGNORE].sum(1).nonzero().flatten().tolist():
        raise _wrong_class("target", num_classes + wrong[-1], num_classes)
    return counts[:num_classes]


def scattered_counts(values: Tensor, bins: int) -> Tensor:
    """How often each of 0 to bins - 1 occurs; `bincount` would wait for the largest on CUDA."""
    values = values.long()
    return values.new_zeros(bins).scatter_add_(0, values, torch.ones_like(values))


def _wrong_class(name: str, value: int, num_classes: int) -> ValueError:
    return ValueError(f"{name} has class {value}, allowed are 0 to {num_classes - 1}")


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
