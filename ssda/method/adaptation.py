"""One joint adaptation step: every box of the paper's framework in order.

Loss = L_source + w_mix L_mix + w_fd L_fd + w_t (w_seed L_seed + w_unc L_unc + w_crf L_crf)
       + w_masked L_masked (off by default)

With two resolutions seeds, uncertainty and TruCRF see the fused logits; every cross entropy is 0.9
that of the fused and 0.1 that of the detail crop's own logits.

The irreducible passes are five: teacher on the target; student forward and backward on source,
target and mixed images; the frozen ImageNet encoder on the source. A mechanism whose weight is 0
costs nothing, except for the student's target pass: it alone fills the running statistics of batch
normalisation (see ssda/networks/normalisation.py), so without target losses it still runs, without
gradient. Source and mixed images are normalised by their own batch and leave those statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.labels import IGNORE
from ssda.method.guidance import (
    PREDICTED_SHARE,
    Guidance,
    Task,
    enlarge_mask,
    guide,
    indicators,
    step_draws,
)
from ssda.method.learning import Loss, Report, learn
from ssda.method.losses import feature_distance, labelling_loss, thing_cells, uncertainty_loss
from ssda.method.mixing import (
    augment,
    jitter,
    mask_blocks,
    mix,
    paste_mask,
    transfer_colours,
)
from ssda.method.subdomains import PredictedShares
from ssda.method.teacher import moving_average
from ssda.method.trucrf import truncated_crf_loss
from ssda.networks.encoders import Encoder
from ssda.networks.heads import enlarge
from ssda.networks.segmenter import Segmenter, Views
from ssda.params import Adapt, Augmentation, TruCRF
from ssda.processes import divided, mean_factor

SHOWN = 2
"""How many images of a batch `look` shows, at most."""


@dataclass(frozen=True)
class Networks:
    """Who takes part in a step.

    Attributes:
        student: learns; in training mode.
        teacher: its moving average; in evaluation mode, no gradients.
        imagenet: frozen encoder; None where its distance weighs 0.
        predicted: how often the teacher has predicted each class, of the steps that are done.
    """

    student: Segmenter
    teacher: Segmenter
    imagenet: Encoder | None
    predicted: PredictedShares


def joint_step(
    networks: Networks, source: SourceBatch, target: TargetBatch, task: Task, step: int
) -> Report:
    """Add the gradients of one joint step to the student's; the caller updates the weights.

    Args:
        networks: student in training mode, teacher in evaluation mode.
        source: labelled batch on the networks' device.
        target: unlabelled batch of the same size.
        task: what stays the same.
        step: number of the step, from 0; addresses its random draws.

    Returns:
        The losses and label-free indicators. By class: `seed_share`, the share of each class's
        pseudo labels that are seeds (NaN: no label), and `predicted_share`, what the running
        shares become with this step.
    """
    settings, student = task.settings, networks.student
    weights, augmentation = settings.losses, settings.augmentation
    draws = partial(step_draws, task, step=step, count=len(source.images))

    source = recoloured(source, target, task, step)
    images = augment(source.images, task.source_augmentation, draws("source augmentation"))
    terms, scalars = source_losses(networks, images, source.labels, task)
    losses = learn(student, images, draws("source dropout"), terms)

    guidance = guide(networks.teacher, networks.predicted, target, task, step)

    images = target.images
    if settings.jitter_target:
        images = jitter(images, augmentation, draws("target jitter"))
    crf = partial(crf_loss, images=target.images, guidance=guidance, settings=settings.trucrf)
    w_t = weights.target
    terms = {
        "trucrf": Loss(w_t * weights.trucrf, crf),
        "seed": Loss(w_t * weights.seed, partial(seed_loss, guidance=guidance)),
        "uncertainty": Loss(w_t * weights.uncertainty, lambda seen: uncertainty_loss(seen.logits)),
    }
    passes = settings.uncertainty.student_passes if weights.uncertainty > 0 else 1
    losses |= learn(
        student, images, draws("target dropout"), terms, passes=passes, fills_statistics=True
    )

    if weights.mix > 0:
        drawn = draws("mixing")
        images, labels, counts = mixed(source, target, guidance, augmentation, drawn)
        loss = partial(labelling_loss, labels=labels, weights=counts)
        losses |= learn(student, images, drawn, {"mix": Loss(weights.mix, loss)})

    if weights.masked > 0:
        drawn = draws("masking")
        images, labels, counts = masked(target, guidance, student.encoder.mean, settings, drawn)
        loss = partial(labelling_loss, labels=labels, weights=counts)
        losses |= learn(student, images, drawn, {"masked": Loss(weights.masked, loss)})

    shares, by_class = indicators(guidance, len(task.class_frequencies))
    return Report(losses, scalars | shares, by_class)


def recoloured(source: SourceBatch, target: TargetBatch, task: Task, step: int) -> SourceBatch:
    """The source, some of its images in the colours of the target image at the same place."""
    draws = step_draws(task, "colour transfer", step, len(source.images))
    share = task.settings.colour_transfer
    return replace(source, images=transfer_colours(source.images, target.images, share, draws))


def follow_student(networks: Networks, momentum: float) -> Callable[[int, Report], None]:
    """What changes once the student has, given a step's number and report.

    The teacher, as `moving_average` says, and how often each class is predicted.
    """
    update = moving_average(networks.teacher, networks.student, momentum)

    def follow(step: int, report: Report) -> None:
        update(step)
        if PREDICTED_SHARE in report.by_class:
            networks.predicted.take(report.by_class[PREDICTED_SHARE])

    return follow


def source_losses(
    networks: Networks, images: Tensor, labels: Tensor, task: Task
) -> tuple[dict[str, Loss], dict[str, Tensor]]:
    """L_source and w_fd L_fd; and the share of cells in which the features are compared.

    Args:
        networks: whose frozen encoder is asked.
        images: (N, 3, H, W), what the student sees of the source.
        labels: (N, H, W).
        task: what stays the same.
    """
    terms = {"source": Loss(1.0, partial(labelling_loss, labels=labels))}
    encoder, settings = networks.imagenet, task.settings.feature_distance
    if encoder is None:
        return terms, {}
    stage = encoder.stage(settings.stride)
    with torch.no_grad():
        reference = encoder(networks.student.context(images))[stage]
        cells = thing_cells(labels, task.things, reference.shape[-2:], settings.min_share)
    weight = task.settings.losses.feature_distance
    terms["feature_distance"] = Loss(
        weight, lambda seen: feature_distance(seen.features[stage], reference, cells)
    )
    return terms, {"thing_cell_share": divided(cells.float().mean())}


def seed_loss(seen: Views, guidance: Guidance) -> Tensor:
    """Cross entropy against the pseudo labels on the seeds, weighted as they are."""
    assert guidance.seeds is not None
    labels = guidance.pseudo.labels
    seeds = enlarge_mask(guidance.seeds, labels.shape[-2:])
    return labelling_loss(seen, labels, guidance.pseudo.weights * seeds)


def crf_loss(seen: Views, images: Tensor, guidance: Guidance, settings: TruCRF) -> Tensor:
    """The truncated CRF on the logits' grid: seeds spread over plain images (N, 3, H, W)."""
    assert guidance.seeds is not None
    probabilities = seen.logits[0].softmax(dim=1)
    return truncated_crf_loss(
        probabilities,
        functional.adaptive_avg_pool2d(images, (probabilities.shape[-2], probabilities.shape[-1])),
        guidance.seeds,
        radius=settings.radius,
        sigma_xy=settings.sigma_xy,
        sigma_rgb=settings.sigma_rgb,
    ) * mean_factor(~guidance.seeds)


def mixed(
    source: SourceBatch,
    target: TargetBatch,
    guidance: Guidance,
    augmentation: Augmentation,
    draws: list[np.random.Generator],
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed images (N, 3, H, W), labels, weights (N, H, W): mix, jitter, blur, drawn by image."""
    mask = paste_mask(source.labels, draws)
    images = mix(mask, source.images, target.images)
    images = augment(images, augmentation, draws)
    labels = mix(mask, source.labels, guidance.pseudo.labels)
    weights = mix(mask, torch.ones_like(guidance.mix_weights), guidance.mix_weights)
    return images, labels, weights


def masked(
    target: TargetBatch,
    guidance: Guidance,
    fill: Tensor,
    settings: Adapt,
    draws: list[np.random.Generator],
) -> tuple[Tensor, Tensor, Tensor]:
    """Masked target images (MIC), the teacher's labels and weights: jitter, blur, mask."""
    images = augment(target.images, settings.augmentation, draws)
    images = mask_blocks(images, fill, settings.masking, draws)
    return images, guidance.pseudo.labels, guidance.pseudo.weights


@torch.no_grad()
def look(
    networks: Networks, source: SourceBatch, target: TargetBatch, task: Task, step: int
) -> dict[str, Tensor]:
    """What a step works with, to be shown to a person; draws as `joint_step`, changes nothing.

    Call it between the step's gradients and the update: then it sees what the step saw.

    Returns:
        For the first images of the batch, at their size: images (n, 3, H, W) in [0, 1], train ids
        (n, H, W) int64 and uncertainty (n, H, W) float; none of a mechanism that is off.
    """
    guidance = guide(networks.teacher, networks.predicted, target, task, step)
    size = target.counted.shape[-2:]
    shown = {"target image": target.images, "pseudo labels (teacher)": guidance.pseudo.labels}
    if guidance.uncertainty is not None and guidance.seeds is not None:
        uncertainty = functional.interpolate(guidance.uncertainty.unsqueeze(1), list(size))
        seeds = enlarge_mask(guidance.seeds, size)
        shown["uncertainty (teacher)"] = uncertainty.squeeze(1)
        shown["seeds (teacher)"] = guidance.pseudo.labels.masked_fill(~seeds, IGNORE)
    if task.settings.losses.mix > 0:
        draws = step_draws(task, "mixing", step, len(source.images))
        augmentation = task.settings.augmentation
        source = recoloured(source, target, task, step)
        images, labels, _ = mixed(source, target, guidance, augmentation, draws)
        shown |= {"mixed image": images, "mixed labels": labels}
    student = networks.student.eval()
    logits = student(target.images[:SHOWN])
    student.train()
    shown["prediction (student)"] = enlarge(logits, size).argmax(dim=1)
    return {name: values[:SHOWN] for name, values in shown.items()}
