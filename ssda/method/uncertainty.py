"""Bayesian uncertainty (StaIA): how much an ensemble of K stochastic passes leaves open.

K passes of the teacher with dropout give p_k. Three statistics of them rank the pixels; the
docstring of each has its equation. Entropies are in bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Shannon entropy in bits along a dimension: -sum p log2 p, with 0 log 0 = 0."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(tiny).log2()).sum(dim)


def mutual_information(probabilities: Tensor) -> Tensor:
    """Epistemic uncertainty U = H(mean_k p_k) - mean_k H(p_k).

    Args:
        probabilities: (K, N, C, H, W), a distribution over C for each pass and pixel.

    Returns:
        (N, H, W) bits, 0 <= U <= log2 min(K, C).
    """
    total = entropy(probabilities.mean(0), dim=1)
    aleatoric = entropy(probabilities, dim=2).mean(0)
    return (total - aleatoric).clamp_min(0.0)


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Total uncertainty U = H(mean_k p_k) / log2 C, in [0, 1].

    Args:
        probabilities: (K, N, C, H, W).

    Returns:
        (N, H, W).
    """
    return entropy(probabilities.mean(0), dim=1) / math.log2(probabilities.shape[2])


def lack_of_confidence(probabilities: Tensor) -> Tensor:
    """Total uncertainty U = 1 - max_c mean_k p_k, in [0, 1 - 1/C].

    Args:
        probabilities: (K, N, C, H, W).

    Returns:
        (N, H, W).
    """
    return 1.0 - probabilities.mean(0).amax(dim=1)


STATISTICS = {
    "mutual_information": mutual_information,
    "predictive_entropy": predictive_entropy,
    "confidence": lack_of_confidence,
}
"""The statistic of each name that adapt.uncertainty.statistic may take."""
