"""The usual way of what this project does otherwise, written anew from its description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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


def masked_train_ids(
    raw: NDArray[np.integer], ids: Mapping[int, int]
) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Train ids (H, W) and pixels of each, by one full-mask pass a raw id."""
    label = np.full(raw.shape, 255, np.uint8)
    counts: dict[int, int] = {}
    for raw_id, train_id in ids.items():
        mask = raw == raw_id
        label[mask] = train_id
        if count := int(mask.sum()):
            counts[train_id] = count
    return label, counts


def convert_label(path: Path, out: Path, ids: Mapping[int, int]) -> dict[int, int]:
    """A raw label PNG to one of train ids, by Pillow and full-mask passes."""
    label, counts = masked_train_ids(np.asarray(Image.open(path)), ids)
    Image.fromarray(label).save(out)
    return counts


def histogram_areas(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, prediction and truth, pixels of each class (C,), by three histograms."""
    counted = target != ignore_index
    guess, truth = prediction[counted].float(), target[counted].float()
    hits = guess[guess == truth]
    areas = [torch.histc(v, num_classes, 0, num_classes - 1) for v in (hits, guess, truth)]
    return areas[0], areas[1], areas[2]
