"""Why a mechanism pays or not: measured on trained networks with the target's labels.

Labels are read here to understand, never to train or to choose. Networks are those that
`research.ablation` leaves below .ssda/research/networks; the first one's seeds divide the
pixels of all.

    python -m research.diagnostics reestimated full without_trucrf --setting short
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from research.ablation import job, network_path
from research.tables import rounded, table
from research.targets import TARGETS, Splits, splits_of
from research.variants import SETTINGS, VARIANTS
from ssda.datasets.batches import EvaluationBatch, SourceBatch, TargetBatch
from ssda.datasets.index import Index, class_frequencies
from ssda.datasets.loading import (
    EvaluationSamples,
    SourceSamples,
    counted_pixels,
    evaluation_batches,
    source_batches,
)
from ssda.engine.checkpoints import load_network
from ssda.files import write_json
from ssda.labels import IGNORE, load_space
from ssda.method.adaptation import Networks, crf_loss, mixed, seed_loss, source_losses
from ssda.method.guidance import Guidance, Task, guide, shrink_mask, step_draws
from ssda.method.learning import Loss, learn
from ssda.method.losses import labelling_loss, source_loss, uncertainty_loss
from ssda.method.mixing import jitter
from ssda.method.subdomains import (
    PredictedShares,
    corrected_ratios,
    keep_ratios,
    select_seeds,
)
from ssda.method.teacher import create_teacher, frozen
from ssda.method.trucrf import truncated_crf_loss
from ssda.method.uncertainty import STATISTICS
from ssda.networks.encoders import Encoder, load_imagenet_weights
from ssda.networks.heads import enlarge
from ssda.networks.segmenter import Segmenter, Views
from ssda.params import Params
from ssda.randomness import generators
from ssda.sections import changed

RESULT = Path("research/results/diagnostics.json")
EDGE = 2
"""A cell is near an edge when another class lies within so many cells."""


@dataclass(frozen=True)
class Ranking:
    """How well a statistic of K passes ranks wrong pixels.

    Attributes:
        statistic: of the ensemble.
        passes: K.
        auroc: chance that a wrong pixel is more uncertain than a right one.
        seeds: share of the seeds that are right, in per cent.
        others: the same of all other pixels.
        seeds_by_class: mean over classes of the share of right seeds.
        others_by_class: the same of all other pixels.
    """

    statistic: str
    passes: int
    auroc: float
    seeds: float
    others: float
    seeds_by_class: float
    others_by_class: float


@dataclass(frozen=True)
class ClassOfSeeds:
    """The seeds of one class, by pseudo label; shares in per cent, None: no pixels."""

    name: str
    keep_ratio: float
    pseudo_labels: int
    seeds_right: float | None
    others_right: float | None


@dataclass(frozen=True)
class Vote:
    """What TruCRF says of pixels that are no seeds, near edges and elsewhere; in per cent.

    The loss pulls such a pixel towards the class that its weighted seed neighbours vote for.

    Attributes:
        sigma_rgb: colour bandwidth.
        radius: of the window.
        place: near an edge of the truth, or inside.
        reached: share of these pixels with a vote (pair weights of 0.1 or more together).
        network_right: of the pixels reached, how many the network has right.
        vote_right: how many the vote has right.
        network_right_where_they_differ: of the pixels reached where both differ.
        vote_right_where_they_differ: the same.
    """

    sigma_rgb: float
    radius: int
    place: str
    reached: float
    network_right: float
    vote_right: float
    network_right_where_they_differ: float | None
    vote_right_where_they_differ: float | None


@dataclass(frozen=True)
class Gradient:
    """A loss term's gradient, mean over batches.

    Attributes:
        term: unweighted, as the loss defines it.
        norm: of the gradient over all weights of the student.
        cosine: with the gradient of cross entropy on the *true* labels of the same target images;
            above 0 a step down the term is one towards the truth.
    """

    term: str
    norm: float
    cosine: float


@dataclass(frozen=True)
class Place:
    """Share of right pixels of a network in per cent, by the first network's seeds and by edges."""

    seeds_near_edges: float
    seeds_inside: float
    others_near_edges: float
    others_inside: float


@dataclass(frozen=True)
class View:
    """A labelled target batch on the logits' grid; rims are IGNORE in labels and truth."""

    images: Tensor
    embedding: Tensor
    probabilities: Tensor
    confidence: Tensor
    labels: Tensor
    truth: Tensor
    edges: Tensor


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    parser.add_argument("--target", choices=TARGETS, default="city")
    parser.add_argument("--state", type=int, default=0)
    parser.add_argument("--batches", type=int, default=12, help="of target images")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    data = splits_of(arguments.target)
    networks: dict[str, Segmenter] = {}
    for name in arguments.variants:
        path = network_path(arguments.setting, arguments.target, name, arguments.state)
        networks[name] = load_network(path)[0]
    full = job(arguments.setting, arguments.target, "full", arguments.state, data.digest)
    params = full.params
    frequencies = torch.from_numpy(class_frequencies([data.source]))
    views = {
        name: views_of(network, data.labelled, params, arguments.batches)
        for name, network in networks.items()
    }
    ratios = {name: seed_ratios(seen, frequencies, params) for name, seen in views.items()}
    first = arguments.variants[0]
    reference = [
        seed_mask(networks[first], view, ratios[first], params, "confidence", 4)
        for view in views[first]
    ]
    content = {
        name: {
            "rankings": [
                asdict(ranking(network, views[name], ratios[name], params, statistic, passes))
                for statistic in STATISTICS
                for passes in (2, 4, 8)
            ],
            "classes": [asdict(row) for row in classes(network, views[name], ratios[name], params)],
            "votes": [asdict(row) for row in votes(network, views[name], ratios[name], params)],
            "places": asdict(places(views[name], reference)),
            "gradients": [asdict(row) for row in gradients(network, data, frequencies, params)],
        }
        for name, network in networks.items()
    }
    head = {
        "setting": arguments.setting,
        "target": arguments.target,
        "random_state": arguments.state,
        "images": arguments.batches * params.adapt.batch_size,
    }
    write_json(arguments.out, head | {"networks": rounded(content, 4)})
    for name, values in content.items():
        print(f"\n## {name}")
        for part, rows in values.items():
            print(table(part, rows if isinstance(rows, list) else [rows]))


@torch.inference_mode()
def views_of(network: Segmenter, index: Index, params: Params, count: int) -> list[View]:
    """Batches of labelled images, evenly spread over the split, as a network sees them."""
    views: list[View] = []
    for batch in _labelled_batches(index, params, count):
        images, truth = batch.images, _truth(batch)
        inputs = images.float() / 255.0
        embedding = network.embed(inputs)
        probabilities = network.classifier(embedding).softmax(1)
        confidence, labels = probabilities.max(1)
        stride = inputs.shape[-1] // labels.shape[-1]
        grid = truth[:, stride // 2 :: stride, stride // 2 :: stride]
        counted = torch.from_numpy(counted_pixels(images.shape[-2:], params.adapt.margins))
        rim = ~shrink_mask(counted.expand(len(images), -1, -1), labels.shape[-2:])
        views.append(
            View(
                inputs,
                embedding,
                probabilities,
                confidence,
                labels.masked_fill(rim, IGNORE),
                grid.masked_fill(rim, IGNORE),
                near_edges(grid),
            )
        )
    return views


def _labelled_batches(index: Index, params: Params, count: int) -> Iterator[EvaluationBatch]:
    size = params.adapt.batch_size
    chosen = index.records[:: max(1, len(index.records) // (count * size))][: count * size]
    samples = EvaluationSamples(replace(index, records=chosen), params.images.target_size)
    return evaluation_batches(samples, lambda _: size, 0)


def _truth(batch: EvaluationBatch) -> Tensor:
    """Labels (N, H, W) int64 at the size of the images."""
    labels = torch.stack([label for label in batch.labels if label is not None])
    size = list(batch.images.shape[-2:])
    return functional.interpolate(labels.unsqueeze(1), size).squeeze(1).long()


def near_edges(labels: Tensor) -> Tensor:
    """Cells (N, h, w) bool with another class within EDGE cells."""
    values = labels.float().unsqueeze(1)
    size = 2 * EDGE + 1
    highest = functional.max_pool2d(values, size, 1, EDGE)
    lowest = -functional.max_pool2d(-values, size, 1, EDGE)
    return (highest != lowest).squeeze(1)


def uncertainty(network: Segmenter, view: View, statistic: str, passes: int) -> Tensor:
    """The statistic (N, h, w) of K passes."""
    draws = generators(0, "diagnostics", 0, len(view.labels))
    with torch.inference_mode():
        members = network.classifier.stochastic(view.embedding, network.draw_masks(passes, draws))
        return STATISTICS[statistic](members.softmax(2))


def seed_ratios(views: list[View], frequencies: Tensor, params: Params) -> Tensor:
    """Keep ratios (C,) as adaptation has them, p_c the shares in the views."""
    settings = params.adapt.seeds
    ratios = keep_ratios(frequencies, beta=settings.beta)
    labels = torch.cat([view.labels for view in views])
    shares = PredictedShares(len(frequencies)).after(labels, step=0, momentum=0.0)
    return corrected_ratios(ratios, frequencies, shares, power=settings.correction)


def seed_mask(
    network: Segmenter, view: View, ratios: Tensor, params: Params, statistic: str, passes: int
) -> Tensor:
    """Seeds (N, h, w) bool, as adaptation draws them."""
    return select_seeds(
        view.labels,
        uncertainty(network, view, statistic, passes),
        view.confidence,
        ratios,
        min_pixels=params.adapt.seeds.min_pixels,
    )


def ranking(
    network: Segmenter,
    views: list[View],
    ratios: Tensor,
    params: Params,
    statistic: str,
    passes: int,
) -> Ranking:
    """How well a statistic ranks wrong pixels, and how right the seeds are."""
    values, labels, truths, seeds = (
        torch.cat(parts)
        for parts in zip(
            *(
                (
                    uncertainty(network, view, statistic, passes),
                    view.labels,
                    view.truth,
                    seed_mask(network, view, ratios, params, statistic, passes),
                )
                for view in views
            ),
            strict=True,
        )
    )
    judged = truths != IGNORE
    right = labels == truths
    chosen, rest = judged & seeds, judged & ~seeds
    return Ranking(
        statistic,
        passes,
        auroc(values[judged], ~right[judged]),
        _share(right[chosen]),
        _share(right[rest]),
        _by_class(right, labels, chosen),
        _by_class(right, labels, rest),
    )


def auroc(values: Tensor, positive: Tensor) -> float:
    """Area under the curve of receiver operating characteristics; ties count half."""
    levels, inverse = values.double().unique(return_inverse=True)
    positives = torch.bincount(inverse[positive], minlength=len(levels)).double()
    negatives = torch.bincount(inverse[~positive], minlength=len(levels)).double()
    below = negatives.cumsum(0) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))


def classes(
    network: Segmenter, views: list[View], ratios: Tensor, params: Params
) -> list[ClassOfSeeds]:
    """Seeds by the default statistic, a class a row."""
    settings = params.adapt.uncertainty
    rows: list[ClassOfSeeds] = []
    seeds = torch.cat(
        [
            seed_mask(network, view, ratios, params, settings.statistic, settings.passes)
            for view in views
        ]
    )
    labels = torch.cat([view.labels for view in views])
    truth = torch.cat([view.truth for view in views])
    for train_id, name in enumerate(load_space(params.labels).names):
        there = (labels == train_id) & (truth != IGNORE)
        right = truth == train_id
        rows.append(
            ClassOfSeeds(
                name,
                round(float(ratios[train_id]), 3),
                int(there.sum()),
                _share(right[there & seeds]) if (there & seeds).any() else None,
                _share(right[there & ~seeds]) if (there & ~seeds).any() else None,
            )
        )
    return rows


def votes(network: Segmenter, views: list[View], ratios: Tensor, params: Params) -> list[Vote]:
    """What TruCRF's neighbours say of pixels that are no seeds."""
    settings = params.adapt.uncertainty
    crf = params.adapt.trucrf
    variants = [
        (crf.sigma_rgb, crf.radius),
        (0.03, crf.radius),
        (0.3, crf.radius),
        (crf.sigma_rgb, 1),
    ]
    rows: list[Vote] = []
    for sigma_rgb, radius in variants:
        facts: list[tuple[Tensor, ...]] = []
        for view in views:
            seeds = seed_mask(network, view, ratios, params, settings.statistic, settings.passes)
            probabilities = view.probabilities.clone().requires_grad_()
            size = (seeds.shape[-2], seeds.shape[-1])
            loss = truncated_crf_loss(
                probabilities,
                functional.adaptive_avg_pool2d(view.images, size),
                seeds,
                radius=radius,
                sigma_xy=crf.sigma_xy,
                sigma_rgb=sigma_rgb,
            )
            others = ~seeds & (view.truth != IGNORE)
            # -dL/dp of such a pixel is its seed neighbours' weighted predictions.
            (pull,) = torch.autograd.grad(-loss * (~seeds).sum(), probabilities)
            vote = pull.argmax(1)
            reached = others & (pull.sum(1) >= 0.1)
            facts.append((others, reached, view.edges, vote, view.labels, view.truth))
        others, reached, edges, vote, labels, truth = (
            torch.cat(parts) for parts in zip(*facts, strict=True)
        )
        for place, where in (("near edges", edges), ("inside", ~edges)):
            pixels = reached & where
            differ = pixels & (vote != labels)
            rows.append(
                Vote(
                    sigma_rgb,
                    radius,
                    place,
                    _share(reached[others & where]),
                    _share((labels == truth)[pixels]),
                    _share((vote == truth)[pixels]),
                    _share((labels == truth)[differ]) if differ.any() else None,
                    _share((vote == truth)[differ]) if differ.any() else None,
                )
            )
    return rows


def places(views: list[View], reference: list[Tensor]) -> Place:
    """Right pixels in four places."""
    right = torch.cat([view.labels == view.truth for view in views])
    judged = torch.cat([view.truth != IGNORE for view in views])
    edges = torch.cat([view.edges for view in views])
    seeds = torch.cat(reference)
    return Place(
        _share(right[judged & seeds & edges]),
        _share(right[judged & seeds & ~edges]),
        _share(right[judged & ~seeds & edges]),
        _share(right[judged & ~seeds & ~edges]),
    )


def gradients(
    network: Segmenter, data: Splits, frequencies: Tensor, params: Params, count: int = 6
) -> list[Gradient]:
    """Norm of each loss term's gradient, and whether it points to the truth."""
    student = create_teacher(network).requires_grad_(True).train()
    teacher = create_teacher(network)
    encoder = Encoder(params.model)
    load_imagenet_weights(encoder, params.model)
    predicted = PredictedShares(len(frequencies))
    networks = Networks(student, teacher, frozen(encoder), predicted)
    samples = SourceSamples(
        [data.source], params.images, params.sampling, params.random_state, "diagnostics"
    )
    sources = source_batches(samples, range(count), params.adapt.batch_size, 0)
    targets = _labelled_batches(data.labelled, params, count)
    found: dict[str, list[tuple[float, float]]] = {}
    for step, (source, whole) in enumerate(zip(sources, targets, strict=False)):
        images = whole.images
        truth = _truth(whole)
        width, height = params.images.crop
        corner = (..., slice(height), slice(width))
        counted = torch.from_numpy(counted_pixels(images.shape[-2:], params.adapt.margins))
        counted = counted.expand(len(images), -1, -1)[corner]
        target = TargetBatch(images[corner], counted).to(torch.device("cpu"))
        batch = source.to(torch.device("cpu"))
        terms = _terms(networks, batch, target, truth[corner], frequencies, params, step)
        truth_gradient = _gradient(student, terms.pop("truth"))
        for name, add in terms.items():
            gradient = _gradient(student, add)
            cosine = functional.cosine_similarity(gradient, truth_gradient, dim=0)
            found.setdefault(name, []).append((float(gradient.norm()), float(cosine)))
    rows: list[Gradient] = []
    for name, values in found.items():
        norms, cosines = zip(*values, strict=True)
        rows.append(Gradient(name, sum(norms) / len(norms), sum(cosines) / len(cosines)))
    return rows


def _terms(
    networks: Networks,
    source: SourceBatch,
    target: TargetBatch,
    truth: Tensor,
    frequencies: Tensor,
    params: Params,
    step: int,
) -> dict[str, Callable[[], object]]:
    """Functions that each add the gradient of one term, unweighted, to the student's."""
    student = networks.student
    count = len(source.images)
    things = load_space(params.labels).things

    def task(weights: dict[str, float], changes: dict[str, str] | None = None) -> Task:
        values = {f"losses.{name}": weight for name, weight in ({"target": 1.0} | weights).items()}
        settings = changed(params.adapt, values | (changes or {}))
        return Task(settings, frequencies, things, params.random_state, params.source_augmentation)

    def weighed(weighting: str) -> dict[str, str]:
        return {"pseudo_labels.weighting": weighting}

    def on_source(name: str) -> Callable[[], object]:
        terms, _ = source_losses(networks, source.images, source.labels, task({name: 1.0}))
        return alone(source.images, "source dropout", terms[name].of)

    def on_target(
        loss: Callable[..., Tensor], passes: int = 1, changes: dict[str, str] | None = None
    ) -> Callable[[], object]:
        chosen = task({"seed": 1.0}, changes)
        guidance = guide(networks.teacher, networks.predicted, target, chosen, step)
        images, augmentation = target.images, params.adapt.augmentation
        if params.adapt.jitter_target:
            images = jitter(images, augmentation, step_draws(chosen, "target jitter", step, count))
        return alone(images, "target dropout", partial(loss, guidance=guidance), passes)

    def on_mix(weighting: str) -> Callable[[], object]:
        chosen = task({"mix": 1.0}, weighed(weighting))
        guidance = guide(networks.teacher, networks.predicted, target, chosen, step)
        drawn = step_draws(chosen, "mixing", step, count)
        images, labels, weights = mixed(source, target, guidance, params.adapt.augmentation, drawn)
        loss = partial(labelling_loss, labels=labels, weights=weights)
        return alone(images, "mixed dropout", loss)

    def alone(
        images: Tensor, purpose: str, loss: Callable[[Views], Tensor], passes: int = 1
    ) -> Callable[[], object]:
        def add() -> None:
            draws = generators(params.random_state, f"diagnostics {purpose}", step, count)
            learn(student, images, draws, {purpose: Loss(1.0, loss)}, passes=passes)

        return add

    def on_truth() -> None:
        logits = student(target.images)
        source_loss(enlarge(logits, truth.shape[-2:]), truth).backward()

    def disagreement(seen: Views, guidance: Guidance) -> Tensor:
        return uncertainty_loss(seen.logits)

    crf = partial(crf_loss, images=target.images, settings=params.adapt.trucrf)
    return {
        "truth": on_truth,
        "source": on_source("source"),
        "feature distance": on_source("feature_distance"),
        "mix, weight q": on_mix("share"),
        "mix, threshold a pixel": on_mix("pixel"),
        "seed, weight q": on_target(seed_loss, changes=weighed("share")),
        "seed, threshold a pixel": on_target(seed_loss, changes=weighed("pixel")),
        "seed by mutual information": on_target(
            seed_loss,
            changes={"uncertainty.statistic": "mutual_information"} | weighed("share"),
        ),
        "uncertainty": on_target(disagreement, params.adapt.uncertainty.student_passes),
        "TruCRF": on_target(crf),
    }


def _gradient(student: Segmenter, add: Callable[[], object]) -> Tensor:
    student.zero_grad()
    add()
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in student.parameters()
        ]
    )


def _share(right: Tensor) -> float:
    return 100.0 * float(right.float().mean())


def _by_class(right: Tensor, labels: Tensor, where: Tensor) -> float:
    shares = [_share(right[where & (labels == train_id)]) for train_id in labels[where].unique()]
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
