"""Dynamic subdomains (StaIA): the certain, balanced share of each class, drawn anew each step."""

from __future__ import annotations

import torch
from torch import Tensor

from ssda.labels import IGNORE


def keep_ratios(class_frequencies: Tensor, *, beta: float) -> Tensor:
    """Share of each class's pixels to keep, r_c = min(1, beta (1 - ln w_c)).

    The frequencies w_c are the global balance statistics: frequent classes keep few pixels, rare
    ones nearly all; a class that the source never shows keeps all of them.

    Args:
        class_frequencies: (C,), not negative; normalised here.
        beta: > 0.

    Returns:
        (C,) float64 in (0, 1].

    Raises:
        ValueError: a negative frequency, or none above 0.
    """
    frequencies = class_frequencies.double()
    if bool((frequencies < 0).any()) or not bool(frequencies.sum() > 0):
        raise ValueError(f"class frequencies {frequencies.tolist()}: must be >= 0, not all 0")
    shares = frequencies / frequencies.sum()
    return (beta * (1.0 - shares.log())).clamp_max(1.0)


def select_seeds(
    labels: Tensor,
    uncertainty: Tensor,
    confidence: Tensor,
    ratios: Tensor,
    *,
    min_pixels: int = 10,
) -> Tensor:
    """The ceil(n_c r_c) most certain pixels of each class with more than min_pixels in the batch.

    Args:
        labels: (N, H, W) integer pseudo labels; 255 is never a seed and is not counted.
        uncertainty: (N, H, W), >= 0; the smaller, the sooner a seed.
        confidence: (N, H, W) in [0, 1]; breaks ties, then the position does.
        ratios: (C,) in [0, 1], as `keep_ratios` gives them.
        min_pixels: a class needs more than these.

    Returns:
        (N, H, W) bool, the seed mask m.
    """
    flat = labels.flatten().long()
    keys = _certainty_keys(flat, uncertainty.flatten(), confidence.flatten())
    order = torch.argsort(keys, stable=True)
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64, device=flat.device)
    counts.index_add_(0, flat, torch.ones_like(flat))
    first = counts.cumsum(0) - counts
    quota = torch.zeros(IGNORE + 1, dtype=torch.int64, device=flat.device)
    known = len(ratios)
    wanted = (counts[:known] * ratios.double().to(flat.device)).ceil().long()
    quota[:known] = torch.where(counts[:known] > min_pixels, wanted, 0)
    ordered = flat[order]
    rank = torch.arange(len(flat), device=flat.device) - first[ordered]
    seeds = torch.empty(len(flat), dtype=torch.bool, device=flat.device)
    seeds[order] = rank < quota[ordered]
    return seeds.view(labels.shape)


def _certainty_keys(labels: Tensor, uncertainty: Tensor, confidence: Tensor) -> Tensor:
    """One integer a pixel that sorts by label, uncertainty, lack of confidence, position.

    The bits of a float32 >= 0 sort as the number does: 8 bits of label, 31 of uncertainty and the
    upper 24 of 1 - confidence make one int64; a stable position breaks what ties are left.
    """
    doubt = (1.0 - confidence.float()).clamp(0.0, 1.0)
    uncertainty_bits = uncertainty.float().clamp_min(0.0).contiguous().view(torch.int32).long()
    doubt_bits = doubt.contiguous().view(torch.int32).long() >> 6
    return (labels << 55) | (uncertainty_bits << 24) | doubt_bits
