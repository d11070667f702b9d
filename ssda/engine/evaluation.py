"""Scoring a network on labelled images, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ssda.datasets.index import Index
from ssda.datasets.loading import EvaluationSamples
from ssda.engine.metrics import confusion_matrix, mean_iou
from ssda.labels import LabelSpace
from ssda.method.uncertainty import entropy, predictive_entropy
from ssda.networks.heads import enlarge
from ssda.networks.segmenter import Segmenter
from ssda.networks.windows import slide
from ssda.params import Params, Windows
from ssda.randomness import generator


def score(
    network: Segmenter,
    samples: EvaluationSamples,
    num_classes: int,
    batch_size: int,
    *,
    windows: Windows | None = None,
    flip: bool = False,
) -> Tensor:
    """Confusion matrix (C, C) int64 on the CPU, at the labels' full size.

    Args:
        network: is put into evaluation mode for the while.
        samples: images with labels.
        num_classes: C.
        batch_size: images, or windows of one image, a forward pass.
        windows: slide over the image with these; None sees it as a whole.
        flip: average with the logits of the mirrored image.
    """
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for images, labels in batches(samples, batch_size if windows is None else 1):
        logits = predict(network, images, windows=windows, per_pass=batch_size, flip=flip)
        for image_logits, label in zip(logits, labels, strict=True):
            assert label is not None
            total += _confusion(image_logits, label, num_classes)
    return total


def validation_score(
    network: Segmenter, index: Index, params: Params, space: LabelSpace
) -> float | None:
    """MIoU in per cent on a labelled split, for the curve: nothing may choose by it."""
    samples = EvaluationSamples(index, params.images.target_size)
    return mean_iou(
        score(network, samples, space.num_classes, params.runtime.evaluation_batch_size)
    )


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
        network: is put into evaluation mode for the while.
        index: images of the target; labels are not opened.
        class_frequencies: (C,) of the source, sum to 1.
        params: sizes.
    """
    count = params.runtime.evaluation_batch_size
    pixels, total = 0, torch.zeros((), device=network.device)
    summed: Tensor | float = 0.0
    for images, _ in batches(spread(index, SCORE_IMAGES, params), count):
        probabilities = predict(network, images).softmax(1)
        pixels += probabilities.numel() // probabilities.shape[1]
        total += entropy(probabilities, 1).sum()
        summed = summed + probabilities.sum((0, 2, 3))
    assert isinstance(summed, Tensor), "no images"
    shares = summed / pixels
    information = entropy(shares, 0) - total / pixels
    return float(information - class_shift(shares, class_frequencies.to(shares)))


def class_shift(shares: Tensor, class_frequencies: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class shares (C,) from the source's, (C,), in bits."""
    reference = class_frequencies.clamp_min(SMALLEST_FREQUENCY)
    return torch.special.xlogy(shares, shares / reference).sum() / math.log(2)


def spread(index: Index, count: int, params: Params) -> EvaluationSamples:
    """At most so many images of a split, evenly spread over it, without labels."""
    chosen = index.records[:: -(-len(index.records) // count)]
    records = tuple(replace(record, label=None) for record in chosen)
    return EvaluationSamples(replace(index, records=records), params.images.target_size)


@torch.inference_mode()
def predict(
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
    return _look(network, images, network, windows, per_pass, flip)


def _look(
    network: Segmenter,
    images: Tensor,
    ask: Callable[[Tensor], Tensor],
    windows: Windows | None,
    per_pass: int,
    flip: bool,
) -> Tensor:
    """As `predict`, of what `ask` says of images (N, 3, H, W) in [0, 1], (N, C, h, w)."""
    training = network.training
    if training:
        network.eval()
    inputs = images.to(network.device).float() / 255.0

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

    said = see(inputs)
    if flip:
        said = (said + see(inputs.flip(-1)).flip(-1)) / 2
    if training:
        network.train()
    return said


def predict_labels(
    network: Segmenter,
    image: Tensor,
    size: torch.Size,
    *,
    windows: Windows | None = None,
    flip: bool = False,
) -> Tensor:
    """Train ids (H, W) uint8 on the CPU, at `size`, of one image (3, h, w) uint8."""
    logits = predict(network, image.unsqueeze(0), windows=windows, flip=flip)
    return _classes(logits, size)


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
        windows: as in `predict`, and the next two.
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

    said = _look(network, images, ask, windows, per_pass, flip)
    labels = torch.stack([_classes(each[None, :-1], size) for each in said])
    return labels, enlarge(said[:, -1:], size)[:, 0].clamp(0.0, 1.0).cpu()


def _confusion(logits: Tensor, label: Tensor, num_classes: int) -> Tensor:
    prediction = _classes(logits.unsqueeze(0), label.shape)
    return confusion_matrix(prediction, label, num_classes=num_classes)


def _classes(logits: Tensor, size: torch.Size) -> Tensor:
    """Train ids (H, W) uint8 on the CPU, at `size`, of logits (1, C, h, w)."""
    # On the CPU `max` takes a quarter of the time of `argmax`.
    return enlarge(logits, size).max(dim=1).indices[0].to("cpu", torch.uint8)


def batches(
    samples: EvaluationSamples, batch_size: int
) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
    """Images (N, 3, H, W) uint8 of one size each, with their labels, in order."""
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    for i in range(len(samples)):
        image, label = samples[i]
        if images and (len(images) == batch_size or image.shape != images[0].shape):
            yield torch.stack(images), labels
            images, labels = [], []
        images.append(image)
        labels.append(label)
    if images:
        yield torch.stack(images), labels


def image_batches(
    samples: EvaluationSamples, batch_size: int, device: torch.device
) -> Iterable[Tensor]:
    """Images alone, (N, 3, H, W) in [0, 1] on the device."""
    for images, _ in batches(samples, batch_size):
        yield images.to(device).float() / 255.0
