"""Rare class sampling (DAFormer): which source image is drawn, and which crop of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssda.labels import IGNORE

ATTEMPTS = 10
"""How often a crop is drawn before the last one is taken as it is."""


@dataclass(frozen=True)
class ImageSampler:
    """Draws images so that rare classes come often.

    Attributes:
        classes: (K,) train ids that have images.
        probabilities: (K,) chance of each.
        images: for each of them the positions of the images that show it.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    images: tuple[np.ndarray, ...]

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """An image's position and the class it was drawn for."""
        chosen = int(rng.choice(len(self.classes), p=self.probabilities))
        return int(rng.choice(self.images[chosen])), int(self.classes[chosen])


def class_probabilities(class_frequencies: np.ndarray, temperature: float) -> np.ndarray:
    """P(c) = softmax((1 - f_c) / T) of frequencies (C,) that sum to 1."""
    scores = (1.0 - class_frequencies) / temperature
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def rare_class_sampler(
    class_pixels: np.ndarray, temperature: float, min_pixels: int
) -> ImageSampler:
    """A sampler from pixel counts (images, C).

    A class takes part when some image has more than min_pixels of it; frequencies are taken over
    the classes that do. Raises ValueError where no class does.
    """
    classes = np.flatnonzero((class_pixels > min_pixels).any(axis=0))
    if len(classes) == 0:
        raise ValueError(
            f"sampling.min_pixels = {min_pixels}: no source image has more pixels of any class; "
            f"the largest count is {int(class_pixels.max(initial=0))}"
        )
    frequencies = class_pixels.sum(axis=0) / class_pixels.sum()
    return ImageSampler(
        classes,
        class_probabilities(frequencies[classes], temperature),
        tuple(np.flatnonzero(class_pixels[:, c] > min_pixels) for c in classes),
    )


def draw_crop(
    label: np.ndarray,
    crop: tuple[int, int],
    rng: np.random.Generator,
    *,
    max_class_share: float,
    wanted: int | None = None,
    min_pixels: float = 0.0,
) -> tuple[int, int]:
    """Upper left corner (y, x) of a crop of a label (H, W).

    Drawn again, ATTEMPTS times in all, while nothing is labelled, one class fills max_class_share
    or more of what is, or no more than min_pixels show the wanted class.

    Args:
        label: train ids.
        crop: (width, height), no larger than the label.
        rng: draws the corners.
        max_class_share: in (0, 1].
        wanted: class that the image was drawn for.
        min_pixels: of the wanted class.
    """
    y = x = 0
    for _ in range(ATTEMPTS):
        y, x = random_corner(label.shape[:2], crop, rng)
        counts = np.bincount(label[y : y + crop[1], x : x + crop[0]].ravel(), minlength=IGNORE + 1)[
            :IGNORE
        ]
        labelled = counts.sum()
        balanced = max_class_share >= 1.0 or counts.max() < max_class_share * labelled
        if labelled > 0 and balanced and (wanted is None or counts[wanted] > min_pixels):
            break
    return y, x


def random_corner(
    size: tuple[int, ...], crop: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """Upper left corner (y, x) of a crop (width, height) somewhere in an image (height, width)."""
    return (
        int(rng.integers(size[0] - crop[1] + 1)),
        int(rng.integers(size[1] - crop[0] + 1)),
    )
