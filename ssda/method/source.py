"""Training on labelled source images, with the pull to the ImageNet features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssda.datasets.batches import SourceBatch
from ssda.method.losses import feature_distance, source_loss, thing_cells
from ssda.networks.encoders import STRIDES, Encoder
from ssda.networks.heads import enlarge
from ssda.networks.segmenter import Segmenter
from ssda.params import FeatureDistance


def source_gradients(
    student: Segmenter,
    imagenet: Encoder | None,
    batch: SourceBatch,
    distance: FeatureDistance,
    distance_weight: float,
    things: tuple[int, ...],
    generators: list[np.random.Generator],
) -> dict[str, Tensor]:
    """Add the gradients of L_source + w_fd L_fd to the student's; return both losses, detached.

    Args:
        student: in training mode.
        imagenet: the frozen encoder in evaluation mode; None where distance_weight is 0.
        batch: (N, 3, H, W) images in [0, 1] and their labels.
        distance: where features are compared.
        distance_weight: w_fd.
        things: train ids of countable classes.
        generators: one an image, for the dropout.
    """
    with mixed_precision(batch.images):
        features = student.encode(batch.images)
        logits = student.classify_once(student.head(features), generators)
    full = enlarge(logits.float(), batch.labels.shape[-2:])
    losses = {"source": source_loss(full, batch.labels)}
    total = losses["source"]
    report: dict[str, Tensor] = {}
    if imagenet is not None:
        stage = STRIDES.index(distance.stride)
        with torch.no_grad(), mixed_precision(batch.images):
            reference = imagenet(batch.images)[stage]
        cells = thing_cells(batch.labels, things, reference.shape[-2:], distance.min_share)
        losses["feature_distance"] = feature_distance(features[stage], reference, cells)
        total = total + distance_weight * losses["feature_distance"]
        report["thing_cell_share"] = cells.float().mean()
    total.backward()
    return report | {f"loss_{name}": loss.detach() for name, loss in losses.items()}


def mixed_precision(images: Tensor) -> torch.autocast:
    """Forward passes inside run in bfloat16 on CUDA, and as they are elsewhere."""
    return torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda)


def frozen_encoder(encoder: Encoder) -> Encoder:
    """The encoder in evaluation mode, without gradients."""
    return encoder.requires_grad_(False).eval()
