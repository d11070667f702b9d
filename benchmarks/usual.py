"""The usual way of what this project does otherwise, written anew from its description."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def unfolded_crf_loss(
    probabilities: Tensor,
    image: Tensor,
    seed_mask: Tensor,
    *,
    radius: int,
    sigma_xy: float,
    sigma_rgb: float,
) -> Tensor:
    """The truncated CRF as gated-CRF code does it: every window unfolded, gradient by autograd.

    Takes and returns what ssda.method.trucrf.truncated_crf_loss does.
    """
    count, _, height, width = probabilities.shape
    side = 2 * radius + 1

    def windows(values: Tensor) -> Tensor:
        """(N, D, H, W) to (N, D, side^2, H, W), zero outside the image."""
        unfolded = functional.unfold(values, side, padding=radius)
        return unfolded.view(count, values.shape[1], side * side, height, width)

    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    distance = (offsets.view(-1, 1) ** 2 + offsets.view(1, -1) ** 2).flatten()
    colour = (windows(image) - image.unsqueeze(2)).square().sum(1)
    kernel = torch.exp(
        -distance.view(1, -1, 1, 1) / (2 * sigma_xy**2) - colour / (2 * sigma_rgb**2)
    )
    others = (~seed_mask).to(image.dtype)
    seeds = windows(seed_mask.to(image.dtype).unsqueeze(1)).squeeze(1)
    agreement = (windows(probabilities) * probabilities.unsqueeze(2)).sum(1)
    loss = (others.unsqueeze(1) * seeds * kernel * (1.0 - agreement)).sum()
    return loss / others.sum().clamp_min(1.0)
