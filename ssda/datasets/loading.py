"""From converted splits to batches. Sample i depends only on (random_state, i)."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssda.datasets.batches import EvaluationBatch, SourceBatch, TargetBatch
from ssda.datasets.image_files import decode, read_rgb
from ssda.datasets.index import Index, Record
from ssda.datasets.sampling import draw_crop, random_corner, rare_class_sampler
from ssda.params import Images, Margins, Sampling
from ssda.processes import count as count_processes
from ssda.processes import part, rank
from ssda.randomness import generator

Size = tuple[int, int]
SHARED_MEMORY = Path("/dev/shm")
"""Where processes that load images put them."""
BatchType = TypeVar("BatchType")


def read_image(path: Path, size: Size | None = None) -> np.ndarray:
    """An RGB image (H, W, 3) uint8 as `read_rgb` gives it, resized to (width, height) where given.

    Raises ValueError naming the file where it is not there, no image or damaged.
    """
    image = _named(path, read_rgb)
    return image if size is None else resize_image(image, size)


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """An image (H, W, 3) at (width, height): averaged where it shrinks, else interpolated."""
    if image.shape[1::-1] == size:
        return image
    shrinks = image.shape[1] > size[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read_label(path: Path, size: Size | None = None) -> np.ndarray:
    """Train ids (H, W) uint8, resized by nearest neighbour to (width, height) where given.

    Raises ValueError naming the file where it is not there, no image or damaged.
    """
    label = _named(path, lambda path: decode(path.read_bytes(), cv2.IMREAD_UNCHANGED))
    if size is not None and label.shape[1::-1] != size:
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    return label


def _read_record(index: Index, record: Record, size: Size | None) -> np.ndarray:
    """As `read_image`; ValueError also where the image has changed its size since `convert`."""
    image = read_image(index.image_path(record), size)
    height, width = image.shape[:2]
    if (width, height) != (size or (record.width, record.height)):
        raise ValueError(
            f"{index.image_path(record)}: {width} x {height} pixels, at conversion "
            f"{record.width} x {record.height}; run dvc repro"
        )
    return image


def _named(path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    try:
        return read(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


class SourceSamples(Dataset[tuple[Tensor, Tensor]]):
    """Random labelled crops, drawn by rare class sampling; sample i of (random_state, i)."""

    def __init__(
        self,
        sources: Sequence[Index],
        images: Images,
        sampling: Sampling,
        random_state: int,
        purpose: str,
    ) -> None:
        """Samples of labelled sets, pooled; ValueError where an image is smaller than the crop."""
        for source in sources:
            check_sizes(source, source.resize, images.crop)
        self.records = [(source, record) for source in sources for record in source.records]
        self.crop = images.crop
        self.sampling = sampling
        self.random_state = random_state
        self.purpose = purpose
        self.sampler = (
            rare_class_sampler(
                np.array([record.class_pixels for _, record in self.records]),
                sampling.rare_class_temperature,
                sampling.min_pixels,
            )
            if sampling.rare_class_temperature is not None
            else None
        )

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Image (3, h, w) uint8 and label (h, w) uint8."""
        rng, source, record, wanted = self._draw(i)
        image = _read_record(source, record, source.resize)
        label = read_label(source.label_path(record), source.resize)
        y, x = draw_crop(
            label,
            self.crop,
            rng,
            max_class_share=self.sampling.max_class_share,
            wanted=wanted,
            min_pixels=self.sampling.min_pixels * self.sampling.min_crop_ratio,
        )
        flip = rng.random() < 0.5
        return _cut(image, y, x, self.crop, flip), _cut(label, y, x, self.crop, flip)

    def file(self, i: int) -> Path:
        """The image that sample i is cut from."""
        _, source, record, _ = self._draw(i)
        return source.image_path(record)

    def _draw(self, i: int) -> tuple[np.random.Generator, Index, Record, int | None]:
        """What goes on drawing, the image and its set, and the class it was drawn for."""
        rng = generator(self.random_state, self.purpose, i)
        if self.sampler is None:
            return rng, *self.records[int(rng.integers(len(self.records)))], None
        position, wanted = self.sampler.draw(rng)
        return rng, *self.records[position], wanted


class TargetSamples(Dataset[tuple[Tensor, Tensor]]):
    """Random unlabelled crops; every image comes once an epoch, sample i of (random_state, i)."""

    def __init__(self, index: Index, images: Images, margins: Margins, random_state: int) -> None:
        """Samples of the target's train split; ValueError for too small images or large margins."""
        check_sizes(index, images.target_size, images.crop, margins)
        self.index = index
        self.size = images.target_size
        self.crop = images.crop
        self.margins = margins
        self.random_state = random_state

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Image (3, h, w) uint8 and what counts of it, (h, w) bool."""
        image = _read_record(self.index, self._record(i), self.size)
        counted = counted_pixels(image.shape[:2], self.margins)
        rng = generator(self.random_state, "target", i)
        y, x = random_corner(image.shape[:2], self.crop, rng)
        flip = rng.random() < 0.5
        return _cut(image, y, x, self.crop, flip), _cut(counted, y, x, self.crop, flip)

    def file(self, i: int) -> Path:
        """The image that sample i is cut from."""
        return self.index.image_path(self._record(i))

    def _record(self, i: int) -> Record:
        count = len(self.index.records)
        return self.index.records[_epoch_order(self.random_state, i // count, count)[i % count]]


class EvaluationSamples(Dataset[tuple[Tensor, Tensor | None]]):
    """Whole images of a split in order, with the full-size label where there is one."""

    def __init__(self, index: Index, size: Size | None) -> None:
        """Images resized to (width, height) where a size is given."""
        self.index = index
        self.size = size

    def __len__(self) -> int:
        """How many images."""
        return len(self.index.records)

    def image_size(self, i: int) -> Size:
        """(width, height) of an image, without reading it."""
        record = self.index.records[i]
        return self.size or (record.width, record.height)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor | None]:
        """Image (3, h, w) uint8 and label (H, W) uint8 or None."""
        record = self.index.records[i]
        image = _read_record(self.index, record, self.size)
        label = None
        if record.label is not None:
            label = torch.from_numpy(read_label(self.index.label_path(record)))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), label


def source_batches(
    samples: SourceSamples, steps: range, batch_size: int, workers: int, *, pin: bool = False
) -> Iterator[SourceBatch]:
    """The batch of each step, this process's part; sample numbers run on from step to step.

    Args:
        samples: crops by number.
        steps: of which batches are wanted.
        batch_size: samples a step, over all processes.
        workers: processes that read ahead.
        pin: lay batches where a GPU fetches them from while the host goes on.
    """
    for images, labels in _load(samples, steps, batch_size, workers, pin):
        yield SourceBatch(images, labels)


def target_batches(
    samples: TargetSamples, steps: range, batch_size: int, workers: int, *, pin: bool = False
) -> Iterator[TargetBatch]:
    """The batch of each step, this process's part, as `source_batches` has it."""
    for images, counted in _load(samples, steps, batch_size, workers, pin):
        yield TargetBatch(images, counted)


def evaluation_batches(
    samples: EvaluationSamples, most: Callable[[Size], int], workers: int
) -> Iterator[EvaluationBatch]:
    """All images in order, neighbours of one size together; of several processes each has a share.

    The batches are the same however many processes there are: each takes every so many-th.

    Args:
        samples: whole images.
        most: how many images of a size (width, height) a batch may hold.
        workers: processes that read ahead, as far as shared memory has room for what they hold.
    """
    batches: list[list[int]] = []
    for size, group in groupby(range(len(samples)), samples.image_size):
        numbers, count = list(group), most(size)
        batches += [numbers[i : i + count] for i in range(0, len(numbers), count)]
    batches = batches[rank() :: count_processes()]
    largest = max((_bytes(samples, numbers) for numbers in batches), default=0)
    workers = min(workers, len(batches), _room(largest))
    loaded = _read_ahead(samples, batches, workers, _together)
    for numbers, (images, labels) in zip(batches, loaded, strict=True):
        yield EvaluationBatch(numbers, images, labels)


def batch_files(samples: SourceSamples | TargetSamples, step: int, batch_size: int) -> list[Path]:
    """The images of a step's batch."""
    return [samples.file(i) for i in range(step * batch_size, (step + 1) * batch_size)]


def counted_pixels(size: tuple[int, ...], margins: Margins) -> np.ndarray:
    """(H, W) bool, False on the rims of an image of that size."""
    height, width = size
    counted = np.zeros((height, width), bool)
    bottom, right = max(0, height - margins.bottom), max(0, width - margins.right)
    counted[margins.top : bottom, margins.left : right] = True
    return counted


def check_sizes(
    index: Index, size: Size | None, crop: Size, margins: Margins | None = None
) -> None:
    """`check_size` of all images, which are brought to (width, height) first where it is given."""
    first: dict[Size, Record] = {}
    for record in index.records:
        first.setdefault(size or (record.width, record.height), record)
    for each, record in first.items():
        check_size(index.image_path(record), each, crop, margins)


def check_size(path: Path, size: Size, crop: Size, margins: Margins | None = None) -> None:
    """ValueError where a crop is larger than an image, or margins leave nothing of it."""
    shown = f"{path}, which is {size[0]} x {size[1]}"
    if crop[0] > size[0] or crop[1] > size[1]:
        raise ValueError(f"images.crop = {list(crop)}: larger than {shown}")
    if margins is None:
        return
    if margins.left + margins.right >= size[0] or margins.top + margins.bottom >= size[1]:
        raise ValueError(f"adapt.margins ({margins}): leaves nothing of {shown}")


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """ValueError where the batches that workers hold ready, two each, do not fit into /dev/shm."""
    if workers > _room(batch_bytes):
        needed, free = 2 * workers * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
        raise ValueError(
            f"runtime.workers = {workers}: needs {needed / 1e6:.2f} MB of {SHARED_MEMORY}, which "
            f"has {free / 1e6:.2f} MB free; enlarge it (docker run --shm-size), or lower "
            "runtime.workers: 0 needs none"
        )


def _room(batch_bytes: int) -> int:
    """How many workers can hold two such batches each in shared memory."""
    if batch_bytes == 0 or not SHARED_MEMORY.is_dir():
        return sys.maxsize
    return shutil.disk_usage(SHARED_MEMORY).free // (2 * batch_bytes)


def _load(
    samples: Any, steps: range, batch_size: int, workers: int, pin: bool
) -> Iterator[list[Tensor]]:
    count = part(batch_size)
    check_shared_memory(workers, count * (samples.crop[0] * samples.crop[1]) * 4)
    firsts = (step * batch_size + rank() * count for step in steps)
    numbers = (list(range(first, first + count)) for first in firsts)
    batches = _read_ahead(samples, numbers, workers, pin=pin)
    for step in steps:
        try:
            batch = next(batches)
        except ValueError as error:
            raise ValueError(f"step {step}: {error}") from error
        yield batch


def _read_ahead(
    samples: Any,
    batches: Iterable[list[int]],
    workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
    *,
    pin: bool = False,
) -> Iterator[Any]:
    """The batches of these samples, in order; ValueError in one line where one cannot be read."""
    if workers:
        cv2.setNumThreads(1)  # each worker's as well; more of them would not survive the fork
        Finalize(None, _end_workers, exitpriority=0)
    try:
        yield from DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=_ignore_signals,
            collate_fn=collate,
            pin_memory=pin,
        )
    except ValueError as error:  # a worker's message is its whole traceback
        raise ValueError(
            str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        ) from error


def _together(
    samples: list[tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, list[Tensor | None]]:
    """Images as one tensor; labels apart, as their sizes may differ."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), list(labels)


def _bytes(samples: EvaluationSamples, numbers: list[int]) -> int:
    """What a batch of whole images and their labels takes."""
    records = [samples.index.records[i] for i in numbers]
    width, height = samples.image_size(numbers[0])
    return len(numbers) * 3 * width * height + sum(
        record.width * record.height for record in records if record.label is not None
    )


def _ignore_signals(_: int) -> None:
    """Workers go on while training saves; they end with the process that they load for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_workers() -> None:
    """At exit: multiprocessing would send those that an error keeps alive a SIGTERM, and wait."""
    for process in multiprocessing.active_children():
        process.kill()


@lru_cache(maxsize=2)
def _epoch_order(random_state: int, epoch: int, count: int) -> np.ndarray:
    return generator(random_state, "target order", epoch).permutation(count)


def _cut(values: np.ndarray, y: int, x: int, crop: Size, flip: bool) -> Tensor:
    """A crop as a tensor, channels first, mirrored where wanted."""
    part = values[y : y + crop[1], x : x + crop[0]]
    part = part[:, ::-1] if flip else part
    return torch.from_numpy(
        np.ascontiguousarray(part if part.ndim == 2 else part.transpose(2, 0, 1))
    )
