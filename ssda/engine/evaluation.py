"""Scoring networks on whole images, in constant memory; of several processes each sees a share."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ssda.datasets.index import Index, Record
from ssda.datasets.loading import EvaluationSamples, evaluation_batches
from ssda.engine.metrics import known_classes, mean_iou, pair_counts
from ssda.labels import IGNORE, LabelSpace
from ssda.method.uncertainty import entropy, predictive_entropy
from ssda.networks.heads import enlarge
from ssda.networks.segmenter import Segmenter
from ssda.networks.windows import slide
from ssda.params import Params, Windows
from ssda.processes import summed
from ssda.randomness import generator


@dataclass(frozen=True)
class Labelled:
    """An image of a split and what networks say of it.

    Attributes:
        record: the image.
        truth: (H, W) uint8 train ids; None without label.
        found: those of each network, (H, W) uint8 at the size of the truth, or of the image.
    """

    record: Record
    truth: Tensor | None
    found: list[Tensor] = field(default_factory=list[Tensor])

    @property
    def size(self) -> torch.Size:
        """(H, W) of the ids."""
        if self.truth is not None:
            return self.truth.shape
        return torch.Size((self.record.height, self.record.width))


def ignore(_: Labelled) -> None:
    """What `score` does with an image beside counting it."""


@torch.inference_mode()
def score(
    networks: Sequence[Segmenter],
    index: Index,
    params: Params,
    watch: Callable[[Labelled], object] = ignore,
) -> list[Tensor]:
    """Confusion matrix (C, C) int64 of each network, on the CPU, at the labels' full size.

    Each image is read once, for all networks, and seen as `evaluate` says. Pixels are counted on
    the device and brought over at the end.

    Args:
        networks: on one device; in evaluation mode for the while.
        index: a split; images without label count nowhere.
        params: sizes, windows, flip.
        watch: is told of each image when it is counted.
    """
    device = networks[0].device
    totals = [
        torch.zeros(IGNORE + 1, each.num_classes, dtype=torch.int64, device=device)
        for each in networks
    ]
    samples = EvaluationSamples(index, params.images.target_size)
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(evaluating(network))
        for batch in evaluation_batches(samples, _most(params), params.runtime.workers):
            images = batch.images.to(device, non_blocking=True)
            records = [index.records[number] for number in batch.numbers]
            seen = [
                Labelled(record, label if label is None else label.to(device, non_blocking=True))
                for record, label in zip(records, batch.labels, strict=True)
            ]
            for network, total in zip(networks, totals, strict=True):
                logits = _see(network, images, params)
                for each, image_logits in zip(seen, logits, strict=True):
                    found = _classes(image_logits.unsqueeze(0), each.size)
                    each.found.append(found)
                    if each.truth is not None:
                        total += pair_counts(found, each.truth, network.num_classes)
            for each in seen:
                watch(each)
    return [known_classes(counts) for counts in summed(torch.stack(totals)).cpu()]


def validation_scores(
    networks: Sequence[Segmenter], index: Index, params: Params
) -> list[float | None]:
    """MIoU of each network in per cent on a labelled split, for the curve: nothing chooses by it.

    It is taken as the report's is, and over the classes that the gate of pull requests looks at.
    """
    classes = main_classes(index.space, params.evaluate.subsets)
    return [mean_iou(confusion, classes) for confusion in score(networks, index, params)]


def main_classes(space: LabelSpace, subsets: tuple[str, ...]) -> tuple[int, ...] | None:
    """Classes of the mIoU that counts: those of the first of these subsets, or all (None)."""
    return space.subsets[subsets[0]] if subsets else None


SCORE_IMAGES = 60
"""How many images the label-free score looks at, at most."""


SMALLEST_FREQUENCY = 1e-6
"""Of a class in the source, so that one that is never shown is no infinite shift."""


@torch.inference_mode()
def label_free_score(
    network: Segmenter, index: Index, class_frequencies: Tensor, params: Params
) -> float:
    """Information of pixel and class less the shift of the classes, in bits: high is good.

    Entropy of the mean prediction minus mean entropy of the predictions: a network scores well
    that is sure of each pixel and yet sees many classes (Bridle et al., 1991). From this goes the
    Kullback-Leibler divergence of the mean prediction from the source's class frequencies, which
    grows when one class spreads over others. How it goes with mIoU: docs/experiments.md.

    Args:
        network: in evaluation mode for the while.
        index: images of the target; labels are not opened.
        class_frequencies: (C,) of the source, sum to 1.
        params: sizes, windows, flip.
    """
    samples = evenly_chosen(index, SCORE_IMAGES, params)
    # Of each class the sum of its probabilities; then of all pixels entropy and number.
    sums = torch.zeros(network.num_classes + 2, dtype=torch.float64, device=network.device)
    with evaluating(network):
        for batch in evaluation_batches(samples, _most(params), params.runtime.workers):
            probabilities = _see(network, batch.images, params).softmax(1)
            sums[:-2] += probabilities.sum((0, 2, 3))
            sums[-2] += entropy(probabilities, 1).sum()
            sums[-1] += probabilities[:, 0].numel()
    sums = summed(sums)
    shares = sums[:-2] / sums[-1]
    information = entropy(shares, 0) - sums[-2] / sums[-1]
    return float(information - class_shift(shares, class_frequencies.to(shares)))


def class_shift(shares: Tensor, class_frequencies: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class shares (C,) from the source's, (C,), in bits."""
    reference = class_frequencies.clamp_min(SMALLEST_FREQUENCY)
    return torch.special.xlogy(shares, shares / reference).sum() / math.log(2)


def evenly_chosen(index: Index, count: int, params: Params) -> EvaluationSamples:
    """At most so many images of a split, evenly spread over it, without labels."""
    chosen = index.records[:: -(-len(index.records) // count)]
    records = tuple(replace(record, label=None) for record in chosen)
    return EvaluationSamples(replace(index, records=records), params.images.target_size)


@torch.inference_mode()
def windowed_logits(
    network: Segmenter,
    images: Tensor,
    *,
    windows: Windows | None = None,
    per_pass: int = 1,
    flip: bool = False,
) -> Tensor:
    """Logits of images (N, 3, H, W) uint8, in evaluation mode.

    (N, C, h, w) on the network's grid, or with windows (N, C, H, W): each window's are enlarged
    to its size and averaged where windows overlap. `per_pass` windows of each image go through
    the network at once; with `flip` the logits of the mirrored images are averaged in.
    """
    return _windowed(network, images, network, windows, per_pass, flip)


def _windowed(
    network: Segmenter,
    images: Tensor,
    ask: Callable[[Tensor], Tensor],
    windows: Windows | None,
    per_pass: int,
    flip: bool,
) -> Tensor:
    """As `windowed_logits`, of what `ask` says of images (N, 3, H, W) in [0, 1], (N, C, h, w)."""
    inputs = images.to(network.device, non_blocking=True).float() / 255.0

    def see(inputs: Tensor) -> Tensor:
        if windows is None:
            return ask(inputs)
        height, width = inputs.shape[-2:]
        window = (min(windows.extent[1], height), min(windows.extent[0], width))
        step = (windows.step[1], windows.step[0])
        return slide(
            inputs,
            window,
            step,
            per_pass,
            lambda crops: enlarge(ask(crops), window).unsqueeze(0),
        )[0]

    with evaluating(network):
        said = see(inputs)
        if flip:
            said = (said + see(inputs.flip(-1)).flip(-1)) / 2
    return said


@contextmanager
def evaluating(network: Segmenter) -> Generator[None]:
    """Inside, the network is in evaluation mode."""
    training = network.training
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


def predict_labels(
    network: Segmenter,
    image: Tensor,
    size: torch.Size,
    *,
    windows: Windows | None = None,
    per_pass: int = 1,
    flip: bool = False,
) -> Tensor:
    """Train ids (H, W) uint8 on the CPU, at `size`, of one image (3, h, w) uint8."""
    logits = windowed_logits(
        network, image.unsqueeze(0), windows=windows, per_pass=per_pass, flip=flip
    )
    return _classes(logits, size).cpu()


@torch.inference_mode()
def predict_uncertainty(
    network: Segmenter,
    images: Tensor,
    size: torch.Size,
    passes: int,
    random_state: int,
    *,
    windows: Windows | None = None,
    per_pass: int = 1,
    flip: bool = False,
) -> tuple[Tensor, Tensor]:
    """Train ids and predictive entropy of K stochastic passes; of an image, whatever the batch.

    Args:
        network: the trained network.
        images: (N, 3, h, w) uint8.
        size: (H, W) of the results.
        passes: K.
        random_state: seeds the dropout.
        windows: as in `windowed_logits`, and the next two.
        per_pass: windows of each image at once; the entropy is averaged where they overlap.
        flip: average with the mirrored images.

    Returns:
        (N, H, W) uint8, and (N, H, W) float in [0, 1], both on the CPU.
    """

    def ask(inputs: Tensor) -> Tensor:
        draws = [generator(random_state, "prediction") for _ in inputs]  # the same for each
        prediction = network.predict(inputs, network.draw_masks(passes, draws))
        entropy = predictive_entropy(prediction.members.softmax(dim=2))
        return torch.cat([prediction.logits, entropy.unsqueeze(1)], dim=1)

    said = _windowed(network, images, ask, windows, per_pass, flip)
    labels = torch.stack([_classes(each[None, :-1], size).cpu() for each in said])
    return labels, enlarge(said[:, -1:], size)[:, 0].clamp(0.0, 1.0).cpu()


def _see(network: Segmenter, images: Tensor, params: Params) -> Tensor:
    """Logits of a batch, seen as `evaluate` says."""
    return windowed_logits(
        network,
        images,
        windows=params.evaluate.windows,
        per_pass=params.runtime.evaluation_batch_size,
        flip=params.evaluate.flip,
    )


def _most(params: Params) -> Callable[[object], int]:
    """How many images are seen at once: with windows these are what a forward pass has many of."""
    count = 1 if params.evaluate.windows is not None else params.runtime.evaluation_batch_size
    return lambda _: count


def _classes(logits: Tensor, size: torch.Size) -> Tensor:
    """Train ids (H, W) uint8 at `size`, of logits (1, C, h, w)."""
    # On the CPU `max` takes a quarter of the time of `argmax`.
    return enlarge(logits, size).max(dim=1).indices[0].to(torch.uint8)
