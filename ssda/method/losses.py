"""Losses on logits, labels and features; of several processes, each has its share of the loss.

Labels, weights and masks are those of all images of a process. Logits and features may be of a
`part` of them, a micro-batch: then the loss is that part's share.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssda.labels import IGNORE
from ssda.method.uncertainty import mutual_information
from ssda.networks.heads import enlarge
from ssda.networks.segmenter import Views
from ssda.networks.windows import cut
from ssda.processes import WHOLE, count, summed
from ssda.tensors import on_device

DETAIL_SHARE = 0.1
"""HRDA's lambda_d: the loss is 0.9 that of the fused logits and 0.1 that of the detail crops."""
SMOOTH_SHARE = 0.1
"""VFM-UDA++: its feature distance is 0.1 smooth L1 and 0.9 of what the cosine lacks to 1."""


def labelling_loss(views: Views, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy of a training pass; with two resolutions of the details on their own as well.

    Args:
        views: the first of its passes counts; logits are enlarged to the labels.
        labels: (N, H, W) int64, IGNORE does not count; of the whole batch that the views are of.
        weights: (N, H, W), >= 0, for `weighted_loss`; None for `source_loss`.
    """

    def loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        full = enlarge(logits, labels.shape[-2:])
        return (
            source_loss(full, labels, views.part)
            if weights is None
            else weighted_loss(full, labels, weights, views.part)
        )

    fused = loss(views.logits[0], labels, weights)
    if views.detail is None:
        return fused
    window = (labels.shape[-2] // 2, labels.shape[-1] // 2)
    inside = cut(labels, views.corners, window)
    weighted = None if weights is None else cut(weights, views.corners, window)
    detail = loss(views.detail[0], inside, weighted)
    return (1 - DETAIL_SHARE) * fused + DETAIL_SHARE * detail


def source_loss(logits: Tensor, labels: Tensor, part: slice = WHOLE) -> Tensor:
    """Cross entropy in nats, mean over labelled pixels; 0 where there are none.

    Args:
        logits: (n, C, H, W).
        labels: (N, H, W) int64, IGNORE does not count.
        part: which n of the N images the logits are of.
    """
    losses = functional.cross_entropy(logits, labels[part], ignore_index=IGNORE, reduction="none")
    # Not reduction="sum", which adds up in any order on CUDA.
    return losses.sum() / summed((labels != IGNORE).sum()).clamp_min(1)


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor, part: slice = WHOLE) -> Tensor:
    """Cross entropy in nats times a weight a pixel, mean over *all* pixels.

    Args:
        logits: (n, C, H, W).
        labels: (N, H, W) int64, IGNORE does not count.
        weights: (N, H, W), >= 0.
        part: which n of the N images the logits are of.
    """
    losses = functional.cross_entropy(logits, labels[part], ignore_index=IGNORE, reduction="none")
    return (losses * weights[part]).mean() * (len(logits) / len(labels)) / count()


def uncertainty_loss(logits: Tensor, images: int) -> Tensor:
    """Mutual information of the student's own passes in bits, mean over pixels, with gradient.

    Args:
        logits: (K, n, C, h, w) of K stochastic passes; the loss pulls them together.
        images: N, of which these are n.
    """
    share = logits.shape[1] / images
    return mutual_information(logits.softmax(dim=2)).mean() * share / count()


def thing_cells(
    labels: Tensor, things: tuple[int, ...], size: torch.Size, min_share: float
) -> Tensor:
    """Cells (N, h, w) bool in which one thing class covers at least min_share.

    Args:
        labels: (N, H, W) int64.
        things: train ids of the countable classes.
        size: (h, w) of the cells.
        min_share: in (0, 1].
    """
    classes = on_device(np.array(things), labels.device).view(1, -1, 1, 1)
    covered = functional.adaptive_avg_pool2d(
        (labels.unsqueeze(1) == classes).float(), (size[0], size[1])
    )
    return (covered >= min_share).any(dim=1)


def feature_distance(
    features: Tensor, reference: Tensor, cells: Tensor, part: slice = WHOLE
) -> Tensor:
    """L2 distance of features over channels, mean over the cells; 0 where there are none.

    Args:
        features: (n, D, h, w) of the student; gets the gradient.
        reference: (N, D, h, w) of the frozen ImageNet encoder.
        cells: (N, h, w) bool.
        part: which n of the N images the features are of.
    """
    distances = torch.linalg.vector_norm(features.float() - reference[part].float(), dim=1)
    return (distances * cells[part]).sum() / summed(cells.sum()).clamp_min(1)


def projected_distance(features: Tensor, reference: Tensor, part: slice = WHOLE) -> Tensor:
    """Smooth L1 and 1 - cosine over channels, mean over all cells (VFM-UDA++, Englert, 2025).

    Args:
        features: (n, D, h, w) of the student, behind its projector.
        reference: (N, D, h, w) of the frozen encoder; normalised here over channels.
        part: which n of the N images the features are of.
    """
    features, wanted = features.float(), reference[part].float().movedim(1, -1)
    wanted = functional.layer_norm(wanted, wanted.shape[-1:]).movedim(-1, 1)
    smooth = functional.smooth_l1_loss(features, wanted, reduction="none").mean(1)
    turned = 1 - functional.cosine_similarity(features, wanted)
    distances = SMOOTH_SHARE * smooth + (1 - SMOOTH_SHARE) * turned
    return distances.mean() * (len(features) / len(reference)) / count()
