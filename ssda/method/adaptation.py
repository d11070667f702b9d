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
from ssda.method.losses import labelling_loss, uncertainty_loss
from ssda.method.mixing import blur, jitter, mask_blocks, mix, paste_mask
from ssda.method.source import (
    ImageNetPull,
    mixed_precision,
    source_gradients,
    stochastic_pass,
)
from ssda.method.subdomains import select_seeds
from ssda.method.teacher import PseudoLabels, pseudo_labels
from ssda.method.trucrf import truncated_crf_loss
from ssda.method.uncertainty import STATISTICS, entropy
from ssda.networks.encoders import Encoder
from ssda.networks.heads import enlarge
from ssda.networks.normalisation import kept_statistics
from ssda.networks.segmenter import Prediction, Segmenter
from ssda.params import Adapt, Augmentation
from ssda.processes import averaged, gathered, own, share, summed
from ssda.randomness import generators

SHOWN = 2
"""How many images of a batch `look` shows, at most."""


@dataclass(frozen=True)
class Networks:
    """Who takes part in a step.

    Attributes:
        student: learns; in training mode.
        teacher: its moving average; in evaluation mode, no gradients.
        imagenet: frozen encoder; None where its distance weighs 0.
    """

    student: Segmenter
    teacher: Segmenter
    imagenet: Encoder | None


@dataclass(frozen=True)
class Task:
    """What stays the same over all steps.

    Attributes:
        settings: the parameters of adaptation.
        ratios: (C,) keep ratios of the classes.
        things: train ids of the countable classes.
        random_state: seeds every draw.
    """

    settings: Adapt
    ratios: Tensor
    things: tuple[int, ...]
    random_state: int


@dataclass(frozen=True)
class Guidance:
    """What the teacher gives to the student.

    Attributes:
        pseudo: labels, weights and q at the size of the image.
        mix_weights: (N, H, W), how much a target pixel counts in mixed images.
        uncertainty: (N, h, w) on the logits' grid; None where no loss needs seeds.
        seeds: (N, h, w) bool, m; None likewise.
        grid_labels: (N, h, w) int64, the pseudo labels that seeds were drawn from.
        entropy: scalar, mean entropy of the teacher in bits.
    """

    pseudo: PseudoLabels
    mix_weights: Tensor
    uncertainty: Tensor | None
    seeds: Tensor | None
    grid_labels: Tensor
    entropy: Tensor


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
        Detached losses (`loss_...`, unweighted) and label-free indicators, all scalars but
        `seed_share`, (C,), the share of each class's pseudo labels that are seeds (NaN: no label).
    """
    settings = task.settings
    pull = None
    if networks.imagenet is not None:
        weight = settings.losses.feature_distance
        pull = ImageNetPull(networks.imagenet, settings.feature_distance, weight, task.things)
    dropout = _generators(task, "source dropout", step, len(source.images))
    with kept_statistics(networks.student):
        report = source_gradients(networks.student, source, dropout, pull)
    guidance = guide(networks.teacher, target, task, step)
    report |= indicators(guidance, len(task.ratios))
    report |= target_gradients(networks.student, target, guidance, task, step)
    if settings.losses.mix > 0:
        with kept_statistics(networks.student):
            report |= mixed_gradients(networks.student, source, target, guidance, task, step)
    if settings.losses.masked > 0:
        with kept_statistics(networks.student):
            report |= masked_gradients(networks.student, target, guidance, task, step)
    return report


@torch.no_grad()
def guide(teacher: Segmenter, target: TargetBatch, task: Task, step: int) -> Guidance:
    """Pseudo labels, and by K stochastic head passes on one trunk, uncertainty and seeds."""
    settings = task.settings.uncertainty
    masks = None
    if needs_seeds(task) and settings.members != "resolutions":
        draws = _generators(task, "teacher", step, len(target.images))
        masks = teacher.draw_masks(settings.passes, draws)
    with mixed_precision(target.images):
        prediction = teacher.predict(target.images, masks)
    logits = prediction.logits
    pseudo = pseudo_labels(
        enlarge(logits, target.counted.shape[-2:]).softmax(dim=1),
        target.counted,
        threshold=settings.confidence_threshold,
        weighting=settings.weighting,
    )
    probabilities = logits.softmax(dim=1)
    confidence, labels = probabilities.max(dim=1)
    labels = labels.masked_fill(~shrink_mask(target.counted, logits.shape[-2:]), IGNORE)
    uncertainty = seeds = None
    if needs_seeds(task):
        members = ensemble(prediction, settings.members).softmax(dim=2)
        uncertainty = STATISTICS[settings.statistic](members)
        everywhere = select_seeds(
            gathered(labels),
            gathered(uncertainty),
            gathered(confidence),
            task.ratios,
            min_pixels=settings.min_pixels,
        )
        seeds = own(everywhere)
        if settings.max_uncertainty is not None:
            seeds &= uncertainty <= settings.max_uncertainty
    mix_weights = pseudo.weights
    if settings.weighting == "seeds" and seeds is not None:
        mix_weights = seed_weights(pseudo, enlarge_mask(seeds, target.counted.shape[-2:]))
    return Guidance(
        pseudo, mix_weights, uncertainty, seeds, labels, entropy(probabilities, 1).mean()
    )


def ensemble(prediction: Prediction, members: str) -> Tensor:
    """Logits (K, N, C, h, w) of the dropout passes, of the resolutions, or of both."""
    if members == "dropout":
        return prediction.members
    assert prediction.context is not None and prediction.detail is not None
    size = prediction.logits.shape[-2:]
    context = enlarge(prediction.context, size)
    resolutions = torch.stack([prediction.logits, context, prediction.detail])
    return torch.cat([prediction.members, resolutions]) if members == "both" else resolutions


def seed_weights(pseudo: PseudoLabels, seeds: Tensor) -> Tensor:
    """The weights (N, H, W) on seeds alone, so much larger that their sum stays."""
    kept = pseudo.weights * seeds
    total = summed(kept.sum()).clamp_min(torch.finfo(kept.dtype).tiny)
    return kept * (summed(pseudo.weights.sum()) / total)


def target_gradients(
    student: Segmenter, target: TargetBatch, guidance: Guidance, task: Task, step: int
) -> dict[str, Tensor]:
    """Gradients of w_t (w_seed L_seed + w_unc L_unc + w_crf L_crf), from one target pass."""
    settings = task.settings
    weights = settings.losses
    images = target.images
    if settings.augmentation.jitter_target:
        images = jitter(
            images, settings.augmentation, _generators(task, "target jitter", step, len(images))
        )
    learns = weights.target * max(weights.seed, weights.uncertainty, settings.trucrf.weight) > 0
    passes = settings.uncertainty.student_passes if weights.uncertainty > 0 else 1
    draws = _generators(task, "target dropout", step, len(images))
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
    with kept_statistics(student):  # activation checkpointing runs the encoder again
        (weights.target * total).backward()
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
    draws = _generators(task, "mixing", step, len(source.images))
    images, labels, weights = mixed(source, target, guidance, task.settings.augmentation, draws)
    loss = labelling_loss(stochastic_pass(student, images, 1, draws), labels, weights)
    (task.settings.losses.mix * loss).backward()
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
    draws = _generators(task, "masking", step, len(target.images))
    images = jitter(target.images, settings.augmentation, draws)
    images = blur(images, settings.augmentation, draws)
    images = mask_blocks(images, student.encoder.mean, settings.masking, draws)
    pseudo = guidance.pseudo
    loss = labelling_loss(stochastic_pass(student, images, 1, draws), pseudo.labels, pseudo.weights)
    (settings.losses.masked * loss).backward()
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
    guidance = guide(networks.teacher, target, task, step)
    size = target.counted.shape[-2:]
    shown = {"target image": target.images, "pseudo labels (teacher)": guidance.pseudo.labels}
    if guidance.uncertainty is not None and guidance.seeds is not None:
        uncertainty = functional.interpolate(guidance.uncertainty.unsqueeze(1), list(size))
        seeds = enlarge_mask(guidance.seeds, size)
        shown["uncertainty (teacher)"] = uncertainty.squeeze(1)
        shown["seeds (teacher)"] = guidance.pseudo.labels.masked_fill(~seeds, IGNORE)
    if task.settings.losses.mix > 0:
        draws = _generators(task, "mixing", step, len(source.images))
        augmentation = task.settings.augmentation
        images, labels, _ = mixed(source, target, guidance, augmentation, draws)
        shown |= {"mixed image": images, "mixed labels": labels}
    student = networks.student.eval()
    with mixed_precision(target.images):
        logits = student(target.images[:SHOWN])
    student.train()
    shown["prediction (student)"] = enlarge(logits, size).argmax(dim=1)
    return {name: values[:SHOWN] for name, values in shown.items()}


@torch.no_grad()
def indicators(guidance: Guidance, num_classes: int) -> dict[str, Tensor]:
    """Label-free indicators of how adaptation goes."""
    report = {"certain_share": guidance.pseudo.certain_share, "entropy": averaged(guidance.entropy)}
    if guidance.uncertainty is not None and guidance.seeds is not None:
        flat = guidance.grid_labels.flatten()
        counts = guidance.entropy.new_zeros(2, IGNORE + 1)
        counts[0].index_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))
        counts[1].index_add_(0, flat, guidance.seeds.flatten().to(counts.dtype))
        counts = summed(counts)
        report["uncertainty"] = averaged(guidance.uncertainty.mean())
        report["seeds"] = averaged(guidance.seeds.float().mean())
        report["seed_share"] = (counts[1] / counts[0])[:num_classes]
    return report


def needs_seeds(task: Task) -> bool:
    """Whether any loss of positive weight looks at seeds."""
    settings, weights = task.settings, task.settings.losses
    in_mix = weights.mix > 0 and settings.uncertainty.weighting == "seeds"
    return in_mix or (weights.target > 0 and (weights.seed > 0 or settings.trucrf.weight > 0))


def shrink_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Mask (N, H, W) on a coarser grid: only cells that are wholly True stay True."""
    share = functional.adaptive_avg_pool2d(mask.float().unsqueeze(1), (size[0], size[1]))
    return share.squeeze(1) >= 1.0 - 1e-6


def enlarge_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Mask (N, h, w) on a finer grid, by nearest neighbour."""
    return functional.interpolate(mask.float().unsqueeze(1), list(size)).squeeze(1) > 0.5


def _generators(task: Task, purpose: str, step: int, count: int) -> list[np.random.Generator]:
    return generators(task.random_state, purpose, step, count)
