"""What the teacher gives to the student in a step: pseudo labels, uncertainty, dynamic seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssda.datasets.batches import TargetBatch
from ssda.labels import IGNORE
from ssda.method.subdomains import (
    PredictedShares,
    corrected_ratios,
    keep_ratios,
    label_counts,
    select_seeds,
)
from ssda.method.teacher import PseudoLabels, pseudo_labels
from ssda.method.uncertainty import STATISTICS, entropy
from ssda.networks.heads import enlarge
from ssda.networks.segmenter import Prediction, Segmenter
from ssda.params import Adapt, Augmentation
from ssda.processes import divided, gathered, micro_batches, own, summed
from ssda.randomness import generators

Join = Callable[[Tensor, Tensor], Tensor]
PREDICTED_SHARE = "predicted_share"
"""In a step's report by class: what the running shares become with the step."""


@dataclass(frozen=True)
class Task:
    """What stays the same over all steps.

    Attributes:
        settings: the parameters of adaptation.
        class_frequencies: (C,), of the source's pixels.
        things: train ids of the countable classes.
        random_state: seeds every draw.
        source_augmentation: colour jitter and blur of source images.
    """

    settings: Adapt
    class_frequencies: Tensor
    things: tuple[int, ...]
    random_state: int
    source_augmentation: Augmentation

    @cached_property  # once: its checks wait for the device
    def ratios(self) -> Tensor:
        """The paper's keep ratios (C,)."""
        return keep_ratios(self.class_frequencies, beta=self.settings.seeds.beta)


@dataclass(frozen=True)
class Guidance:
    """What the teacher gives to the student.

    Attributes:
        pseudo: labels, weights and q at the size of the image.
        mix_weights: (N, H, W), how much a target pixel counts in mixed images.
        uncertainty: (N, h, w) on the logits' grid; None where no loss needs seeds.
        seeds: (N, h, w) bool, m; None likewise.
        grid_labels: (N, h, w) int64, the pseudo labels that seeds were drawn from.
        label_counts: (256,) int64, pixels of each of them in all processes; None without seeds.
        entropy: scalar, mean entropy of the teacher in bits.
        predicted_shares: (C,) p_c with this batch; None where it corrects no ratio.
    """

    pseudo: PseudoLabels
    mix_weights: Tensor
    uncertainty: Tensor | None
    seeds: Tensor | None
    grid_labels: Tensor
    label_counts: Tensor | None
    entropy: Tensor
    predicted_shares: Tensor | None


@torch.no_grad()
def guide(
    teacher: Segmenter, predicted: PredictedShares, target: TargetBatch, task: Task, step: int
) -> Guidance:
    """Pseudo labels, and by K stochastic head passes on one trunk, uncertainty and seeds."""
    labelling, choice = task.settings.pseudo_labels, task.settings.seeds
    prediction = ask(teacher, target.images, task, step)
    logits = prediction.logits
    pseudo = pseudo_labels(
        enlarge(logits, target.counted.shape[-2:]).softmax(dim=1),
        target.counted,
        threshold=labelling.confidence_threshold,
        weighting=labelling.weighting,
    )
    probabilities = logits.softmax(dim=1)
    confidence, labels = probabilities.max(dim=1)
    labels = labels.masked_fill(~shrink_mask(target.counted, logits.shape[-2:]), IGNORE)
    uncertainty = seeds = counts = predicted_shares = None
    if needs_seeds(task):
        ranking = task.settings.uncertainty
        members = ensemble(prediction, ranking.members).softmax(dim=2)
        uncertainty = STATISTICS[ranking.statistic](members)
        everywhere = gathered(torch.stack([labels.float(), uncertainty, confidence], dim=1))
        all_labels, all_uncertainty, all_confidence = everywhere.unbind(1)
        counts, ratios = label_counts(all_labels), task.ratios
        if choice.correction > 0:
            momentum = task.settings.teacher_momentum
            predicted_shares = predicted.after(all_labels, step=step, momentum=momentum)
            anchor = task.class_frequencies if choice.anchor == "source" else predicted.start
            ratios = corrected_ratios(ratios, anchor, predicted_shares, power=choice.correction)
        seeds = own(
            select_seeds(
                all_labels,
                all_uncertainty,
                all_confidence,
                ratios,
                min_pixels=choice.min_pixels,
            )
        )
        if choice.max_uncertainty is not None:
            seeds &= uncertainty <= choice.max_uncertainty
    mix_weights = pseudo.weights
    if labelling.weighting == "seeds" and seeds is not None:
        mix_weights = seed_weights(pseudo, enlarge_mask(seeds, target.counted.shape[-2:]))
    return Guidance(
        pseudo,
        mix_weights,
        uncertainty,
        seeds,
        labels,
        counts,
        entropy(probabilities, 1).mean(),
        predicted_shares,
    )


def ask(teacher: Segmenter, images: Tensor, task: Task, step: int) -> Prediction:
    """What the teacher says of images (N, 3, H, W), with stochastic passes where seeds need them.

    With `mirrored`, the mean of what it says of them and of their mirror images, and the passes of
    both, each with masks of its own.
    """
    settings = task.settings.uncertainty

    def see(images: Tensor, purpose: str) -> Prediction:
        masks = None
        if needs_seeds(task) and settings.members != "resolutions":
            draws = step_draws(task, purpose, step, len(images))
            masks = teacher.draw_masks(settings.passes, draws)
        return reduce(
            beside,
            (
                teacher.predict(images[part], None if masks is None else masks[:, part])
                for part in micro_batches(len(images), task.settings.micro_batch_size)
            ),
        )

    plain = see(images, "teacher")
    if not task.settings.pseudo_labels.mirrored:
        return plain
    return of_both(plain, see(images.flip(-1), "mirrored teacher"))


def beside(one: Prediction, other: Prediction) -> Prediction:
    """What is said of the images of both, one after the other."""
    return _both(
        one,
        other,
        lambda values, others: torch.cat([values, others]),
        lambda values, others: torch.cat([values, others], dim=1),
    )


def of_both(plain: Prediction, mirrored: Prediction) -> Prediction:
    """Mean logits of an image and of its mirror image, the members of both."""
    return _both(
        plain,
        mirrored,
        lambda values, others: (values + others.flip(-1)) / 2,
        lambda values, others: torch.cat([values, others.flip(-1)]),
    )


def _both(one: Prediction, other: Prediction, join: Join, join_members: Join) -> Prediction:
    return Prediction(
        join(one.logits, other.logits),
        join_members(one.members, other.members),
        *(
            None if values is None or others is None else join(values, others)
            for values, others in ((one.context, other.context), (one.detail, other.detail))
        ),
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
    total, on_seeds = summed(torch.stack([pseudo.weights.sum(), kept.sum()]))
    return kept * (total / on_seeds.clamp_min(torch.finfo(kept.dtype).tiny))


@torch.no_grad()
def indicators(guidance: Guidance, num_classes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Label-free indicators of how adaptation goes, scalars and by class, as `Report` has them."""
    scalars = {
        "certain_share": divided(guidance.pseudo.certain_share),
        "entropy": divided(guidance.entropy),
    }
    by_class: dict[str, Tensor] = {}
    if guidance.uncertainty is not None and guidance.seeds is not None:
        assert guidance.label_counts is not None
        scalars["uncertainty"] = divided(guidance.uncertainty.mean())
        scalars["seeds"] = divided(guidance.seeds.float().mean())
        seed_labels = guidance.grid_labels.masked_fill(~guidance.seeds, IGNORE)
        seed_share = label_counts(seed_labels) / guidance.label_counts
        by_class["seed_share"] = seed_share[:num_classes]
    if guidance.predicted_shares is not None:
        by_class[PREDICTED_SHARE] = divided(guidance.predicted_shares)
    return scalars, by_class


def needs_seeds(task: Task) -> bool:
    """Whether any loss of positive weight looks at seeds."""
    weights = task.settings.losses
    in_mix = weights.mix > 0 and task.settings.pseudo_labels.weighting == "seeds"
    return in_mix or (weights.target > 0 and (weights.seed > 0 or weights.trucrf > 0))


def shrink_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Mask (N, H, W) on a coarser grid: only cells that are wholly True stay True."""
    share = functional.adaptive_avg_pool2d(mask.float().unsqueeze(1), (size[0], size[1]))
    return share.squeeze(1) >= 1.0 - 1e-6


def enlarge_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Mask (N, h, w) on a finer grid, by nearest neighbour."""
    return functional.interpolate(mask.float().unsqueeze(1), list(size)).squeeze(1) > 0.5


def step_draws(task: Task, purpose: str, step: int, count: int) -> list[np.random.Generator]:
    """A source of random numbers for each of `count` images of the step."""
    return generators(task.random_state, purpose, step, count)
