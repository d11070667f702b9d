"""A trained network that labels images of one's own; `ssda.load` gives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from ssda.datasets.loading import read_image, resize_image
from ssda.engine.checkpoints import load_network, trained_size
from ssda.engine.device import pick_device, pick_precision
from ssda.engine.evaluation import predict_uncertainty
from ssda.labels import LabelSpace
from ssda.networks.segmenter import Segmenter
from ssda.params import BatchSize, Size, Windows
from ssda.sections import Section


class Options(Section):
    """How a network looks at images; `ssda.load` says what each means and has the defaults."""

    device: Literal["auto", "cuda", "cpu"]
    windows: Windows | None
    batch: BatchSize
    scale: Annotated[float, Field(gt=0, lt=100)] | None
    flip: bool
    passes: Annotated[int, Field(ge=1, le=256)]


@dataclass(frozen=True)
class LabelledImage:
    """An image and what the network says of it.

    Attributes:
        image: (H, W, 3) uint8 RGB, as it is to be shown.
        classes: (H, W) uint8 train ids, the positions of the classes in `Labeller.names`.
        uncertainty: (H, W) float32, the entropy of the mean of the Monte-Carlo passes over that of
            all classes alike (`predictive_entropy`): 0 is sure, 1 undecided between all classes.
        space: names and colours of the classes.
    """

    image: np.ndarray
    classes: np.ndarray
    uncertainty: np.ndarray
    space: LabelSpace

    @property
    def colours(self) -> np.ndarray:
        """The colours of the pixels' classes, (H, W, 3) uint8 RGB."""
        return self.space.palette()[self.classes]


@dataclass(frozen=True)
class Labeller:
    """A trained network, its classes, and how it looks at images.

    Attributes:
        network: in evaluation mode, where it computes.
        space: its classes.
        options: how it looks at images.
        image_size: (width, height) that it knows images at; None: at any.
    """

    network: Segmenter
    space: LabelSpace
    options: Options
    image_size: Size | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the train ids."""
        return self.space.names

    def label(self, image: str | PathLike[str] | np.ndarray) -> LabelledImage:
        """Classes, colours and uncertainty of an image of any size.

        Args:
            image: (H, W, 3) uint8 RGB, or a file, which is turned as its EXIF header says.

        Raises ValueError for an array of another kind, and for a file that is not there, no image,
        or damaged.
        """
        if isinstance(image, (str, PathLike)):
            image = read_image(Path(image))
        return self.label_batch([image])[0]

    def label_batch(self, images: Sequence[np.ndarray]) -> list[LabelledImage]:
        """As `label`, of images (H, W, 3) of one size, without windows in one forward pass."""
        for image in images:
            _check(image)
        inputs = np.stack([self._seen(image) for image in images])
        classes, uncertainty = predict_uncertainty(
            self.network,
            torch.from_numpy(inputs).permute(0, 3, 1, 2),
            torch.Size(images[0].shape[:2]),
            self.options.passes,
            random_state=0,
            windows=self.options.windows,
            per_pass=self.options.batch,
            flip=self.options.flip,
        )
        said = zip(images, classes.numpy(), uncertainty.numpy(), strict=True)
        return [LabelledImage(*each, self.space) for each in said]

    def _seen(self, image: np.ndarray) -> np.ndarray:
        """An image at the scale that was asked for; else with as many pixels as are known."""
        height, width = image.shape[:2]
        scale = self.options.scale
        if scale is None:
            known = math.prod(self.image_size) if self.image_size else height * width
            scale = math.sqrt(known / (height * width))
        return resize_image(image, (max(1, round(width * scale)), max(1, round(height * scale))))


def load_labeller(path: Path, options: Options) -> Labeller:
    """The network of a file, where it is to compute; ValueError as `load_network`."""
    network, space = load_network(path)
    device = pick_device(options.device)
    network.to(device).encoder.precision = pick_precision("auto", device)
    return Labeller(network, space, options, trained_size(path))


def _check(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"image of {image.dtype} and shape {image.shape}: needed is uint8 RGB, "
            "(height, width, 3)"
        )
