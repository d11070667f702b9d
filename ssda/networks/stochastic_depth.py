"""Stochastic depth (Huang et al., ECCV 2016) whose draws are given, sample by sample.

Layers that draw for themselves take the next random numbers of the process: then what a sample
skips depends on its place in the batch and on how many processes share the batch out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Behind a residual branch: while training, samples whose factor is 0 skip the branch.

    Attributes:
        rate: share of samples that skip.
        factors: (N,), 0 or 1 / (1 - rate), of the pass; None where no sample skips.
    """

    def __init__(self, rate: float) -> None:
        """Behind a branch that a share `rate` of samples skips."""
        super().__init__()
        self.rate = rate
        self.factors: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """The branch (N, ...) times the factors."""
        if not self.training or self.factors is None:
            return branch
        factors = self.factors.to(branch.dtype)
        return branch * factors.view(-1, *[1] * (branch.dim() - 1))


def take_over_depth(network: nn.Module) -> list[StochasticDepth]:
    """The network's stochastic depth in order, after putting ours in place of timm's."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, DropPath):
                setattr(parent, name, StochasticDepth(layer.drop_prob))
    return [layer for layer in network.modules() if isinstance(layer, StochasticDepth)]


def draw_factors(
    depths: list[StochasticDepth], generators: list[np.random.Generator]
) -> NDArray[np.float32]:
    """Factors (L, N) of L layers, a generator a sample."""
    rates = np.array([depth.rate for depth in depths])
    kept = np.stack([rng.random(len(rates)) >= rates for rng in generators], axis=1)
    return (kept / (1 - rates[:, None])).astype(np.float32)
