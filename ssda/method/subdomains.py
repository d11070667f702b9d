"""Dynamic subdomains (StaIA): the certain, balanced share of each class, drawn anew each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssda.labels import IGNORE

SMALLEST_SHARE = 1e-6
"""Of a class among the pseudo labels, so that one that is never predicted divides by no zero."""


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


def label_counts(labels: Tensor) -> Tensor:
    """Pixels of each label, (256,) int64, of integer labels of any shape in [0, 255]."""
    flat = labels.flatten().long()
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64, device=flat.device)
    return counts.index_add_(0, flat, torch.ones_like(flat))


class PredictedShares(nn.Module):
    """Share p_c of each class among the teacher's pseudo labels: the running one, and the first.

    A module because it is state of training: saved, restored and given to all processes as
    networks are.

    Attributes:
        shares: (C,) float64; all 0 before the first step.
        start: (C,) float64, over the target before the first step; 0 where no ratio asks for it.
    """

    shares: Tensor
    start: Tensor

    def __init__(self, num_classes: int) -> None:
        """Nothing predicted yet."""
        super().__init__()
        self.register_buffer("shares", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("start", torch.zeros(num_classes, dtype=torch.float64))

    def after(self, labels: Tensor, *, step: int, momentum: float) -> Tensor:
        """The shares (C,) that one more batch makes; changes nothing.

        Args:
            labels: the batch's pseudo labels, integers of any shape; 255 is not counted.
            step: number of the step, t, from 0.
            momentum: a; the moving average keeps min(a, t / (t + 1)) of what it has.
        """
        counts = label_counts(labels)[: len(self.shares)].double()
        kept = min(momentum, step / (step + 1))
        shares = kept * self.shares + (1.0 - kept) * counts / counts.sum().clamp_min(1.0)
        return shares / shares.sum().clamp_min(SMALLEST_SHARE)  # 0 so far after steps left out

    def take(self, shares: Tensor) -> None:
        """Make shares (C,) those of now."""
        self.shares.copy_(shares)


def corrected_ratios(ratios: Tensor, anchor: Tensor, predicted: Tensor, *, power: float) -> Tensor:
    """Keep ratios r_c (a_c / p_c)^g, at most 1; not in the paper.

    With r_c alone a class that spreads over its neighbours gets the more seeds by it, and spreads
    on. With g = 1 it has as many however often it is predicted, over time a share r_c a_c of all
    pixels; with more than 1 it has fewer.

    Args:
        ratios: (C,) r_c, as `keep_ratios` gives them.
        anchor: (C,), not negative; a_c once normalised: the source's frequencies or the shares at
            the start. A class of none there keeps its r_c.
        predicted: (C,) shares p_c of the pseudo labels.
        power: the exponent g, >= 0.

    Returns:
        (C,) float64 in (0, 1].
    """
    anchor = anchor.double()
    shares = anchor / anchor.sum()
    factor = (shares / predicted.clamp_min(SMALLEST_SHARE)) ** power
    return torch.where(anchor > 0, (ratios * factor).clamp_max(1.0), ratios)


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
    counts = label_counts(flat)
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
