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

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.labels import IGNORE
from ssda.method.guidance import Guidance, Task, enlarge_mask, guide, indicators, step_draws
from ssda.method.losses import labelling_loss, uncertainty_loss
from ssda.method.mixing import blur, jitter, mask_blocks, mix, paste_mask
from ssda.method.source import (
    ImageNetPull,
    backpropagate,
    source_gradients,
    stochastic_pass,
)
from ssda.method.subdomains import PredictedShares
from ssda.method.trucrf import truncated_crf_loss
from ssda.networks.encoders import Encoder
from ssda.networks.heads import enlarge
from ssda.networks.normalisation import kept_statistics
from ssda.networks.segmenter import Segmenter
from ssda.params import Augmentation
from ssda.processes import share

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
) -> dict[str, Tensor]:
    """Add the gradients of one joint step to the student's; the caller updates the weights.

    Args:
        networks: student in training mode, teacher in evaluation mode.
        source: labelled batch on the networks' device.
        target: unlabelled batch of the same size.
        task: what stays the same.
        step: number of the step, from 0; addresses its random draws.

    Returns:
        Detached losses (`loss_...`, unweighted) and label-free indicators; those of several
        processes add up. All scalars but two (C,): `seed_share`, the share of each class's pseudo
        labels that are seeds (NaN: no label), and `predicted_share`, what the running shares
        become with this step.
    """
    settings = task.settings
    pull = None
    if networks.imagenet is not None:
        weight = settings.losses.feature_distance
        pull = ImageNetPull(networks.imagenet, settings.feature_distance, weight, task.things)
    dropout = step_draws(task, "source dropout", step, len(source.images))
    with kept_statistics(networks.student):
        report = source_gradients(networks.student, source, dropout, pull)
    guidance = guide(networks.teacher, networks.predicted, target, task, step)
    report |= indicators(guidance, len(task.class_frequencies))
    report |= target_gradients(networks.student, target, guidance, task, step)
    if settings.losses.mix > 0:
        with kept_statistics(networks.student):
            report |= mixed_gradients(networks.student, source, target, guidance, task, step)
    if settings.losses.masked > 0:
        with kept_statistics(networks.student):
            report |= masked_gradients(networks.student, target, guidance, task, step)
    return report


def target_gradients(
    student: Segmenter, target: TargetBatch, guidance: Guidance, task: Task, step: int
) -> dict[str, Tensor]:
    """Gradients of w_t (w_seed L_seed + w_unc L_unc + w_crf L_crf), from one target pass."""
    settings = task.settings
    weights = settings.losses
    images = target.images
    if settings.augmentation.jitter_target:
        images = jitter(
            images, settings.augmentation, step_draws(task, "target jitter", step, len(images))
        )
    learns = weights.target * max(weights.seed, weights.uncertainty, settings.trucrf.weight) > 0
    passes = settings.uncertainty.student_passes if weights.uncertainty > 0 else 1
    draws = step_draws(task, "target dropout", step, len(images))
    with torch.set_grad_enabled(learns):
        views = stochastic_pass(student, images, passes, draws)
    if not learns:
        return {}
    logits = views.logits[0]
    losses: dict[str, Tensor] = {}
    total = logits.new_zeros(())
    if weights.seed > 0:
        assert guidance.seeds is not None
        labels = guidance.pseudo.labels
        seeds = enlarge_mask(guidance.seeds, labels.shape[-2:])
        losses["seed"] = labelling_loss(views, labels, guidance.pseudo.weights * seeds)
        total = total + weights.seed * losses["seed"]
    if weights.uncertainty > 0:
        losses["uncertainty"] = uncertainty_loss(views.logits)
        total = total + weights.uncertainty * losses["uncertainty"]
    if settings.trucrf.weight > 0:
        assert guidance.seeds is not None
        losses["trucrf"] = truncated_crf_loss(
            logits.softmax(dim=1),
            functional.adaptive_avg_pool2d(target.images, (logits.shape[-2], logits.shape[-1])),
            guidance.seeds,
            radius=settings.trucrf.radius,
            sigma_xy=settings.trucrf.sigma_xy,
            sigma_rgb=settings.trucrf.sigma_rgb,
        ) * share(~guidance.seeds)
        total = total + settings.trucrf.weight * losses["trucrf"]
    backpropagate(student, weights.target * total)
    return {f"loss_{name}": loss.detach() for name, loss in losses.items()}


def mixed_gradients(
    student: Segmenter,
    source: SourceBatch,
    target: TargetBatch,
    guidance: Guidance,
    task: Task,
    step: int,
) -> dict[str, Tensor]:
    """Gradients of w_mix L_mix."""
    draws = step_draws(task, "mixing", step, len(source.images))
    images, labels, weights = mixed(source, target, guidance, task.settings.augmentation, draws)
    loss = labelling_loss(stochastic_pass(student, images, 1, draws), labels, weights)
    backpropagate(student, task.settings.losses.mix * loss)
    return {"loss_mix": loss.detach()}


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
    images = jitter(images, augmentation, draws)
    images = blur(images, augmentation, draws)
    labels = mix(mask, source.labels, guidance.pseudo.labels)
    weights = mix(mask, torch.ones_like(guidance.mix_weights), guidance.mix_weights)
    return images, labels, weights


def masked_gradients(
    student: Segmenter, target: TargetBatch, guidance: Guidance, task: Task, step: int
) -> dict[str, Tensor]:
    """Gradients of w_masked L_masked (MIC): jitter, blur, mask; the teacher's labels and q."""
    settings = task.settings
    draws = step_draws(task, "masking", step, len(target.images))
    images = jitter(target.images, settings.augmentation, draws)
    images = blur(images, settings.augmentation, draws)
    images = mask_blocks(images, student.encoder.mean, settings.masking, draws)
    pseudo = guidance.pseudo
    loss = labelling_loss(stochastic_pass(student, images, 1, draws), pseudo.labels, pseudo.weights)
    backpropagate(student, settings.losses.masked * loss)
    return {"loss_masked": loss.detach()}


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
        images, labels, _ = mixed(source, target, guidance, augmentation, draws)
        shown |= {"mixed image": images, "mixed labels": labels}
    student = networks.student.eval()
    logits = student(target.images[:SHOWN])
    student.train()
    shown["prediction (student)"] = enlarge(logits, size).argmax(dim=1)
    return {name: values[:SHOWN] for name, values in shown.items()}
