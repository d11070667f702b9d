"""Training on labelled source images, with the pull to the ImageNet features."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssda.datasets.batches import SourceBatch
from ssda.method.losses import feature_distance, labelling_loss, thing_cells
from ssda.networks.encoders import Encoder
from ssda.networks.normalisation import kept_statistics
from ssda.networks.segmenter import Segmenter, Views
from ssda.networks.windows import halve
from ssda.params import FeatureDistance
from ssda.processes import divided


@dataclass(frozen=True)
class ImageNetPull:
    """The feature distance: w_fd L_fd.

    Attributes:
        encoder: the frozen ImageNet encoder, in evaluation mode.
        settings: where features are compared.
        weight: w_fd, above 0.
        things: train ids of countable classes.
    """

    encoder: Encoder
    settings: FeatureDistance
    weight: float
    things: tuple[int, ...]


def source_gradients(
    student: Segmenter,
    batch: SourceBatch,
    generators: list[np.random.Generator],
    pull: ImageNetPull | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of L_source + w_fd L_fd to the student's; return both losses, detached.

    Args:
        student: in training mode.
        batch: (N, 3, H, W) images in [0, 1] and their labels.
        generators: one an image, for the dropout.
        pull: the feature distance; without it there is none.
    """
    views = stochastic_pass(student, batch.images, 1, generators)
    losses = {"source": labelling_loss(views, batch.labels)}
    total = losses["source"]
    report: dict[str, Tensor] = {}
    if pull is not None:
        stage = pull.encoder.stage(pull.settings.stride)
        images = batch.images if views.detail is None else halve(batch.images)
        with torch.no_grad():
            reference = pull.encoder(images)[stage]
        cells = thing_cells(
            batch.labels, pull.things, reference.shape[-2:], pull.settings.min_share
        )
        losses["feature_distance"] = feature_distance(views.features[stage], reference, cells)
        total = total + pull.weight * losses["feature_distance"]
        report["thing_cell_share"] = divided(cells.float().mean())
    backpropagate(student, total)
    return report | {f"loss_{name}": loss.detach() for name, loss in losses.items()}


def stochastic_pass(
    student: Segmenter, images: Tensor, passes: int, generators: list[np.random.Generator]
) -> Views:
    """A training pass: dropout masks, detail crops and stochastic depth drawn from generators.

    Args:
        student: in training mode.
        images: (N, 3, H, W) in [0, 1].
        passes: K, passes that follow the one trunk.
        generators: one an image.
    """
    masks = student.draw_masks(passes, generators)
    corners = student.draw_corners(images.shape[-2:], generators)
    return student.observe(images, masks, corners, student.draw_depth(generators))


def backpropagate(student: Segmenter, loss: Tensor) -> None:
    """Add the loss's gradients to the student's.

    Where activations are computed a second time for that, batch normalisation does not take them
    into its running statistics again.
    """
    again = student.encoder.checkpointing
    with kept_statistics(student) if again else nullcontext():
        loss.backward()


def frozen_encoder(encoder: Encoder) -> Encoder:
    """The encoder in evaluation mode, without gradients."""
    return encoder.requires_grad_(False).eval()
