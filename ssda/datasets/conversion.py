"""From a raw split to train-id labels, an index and pixels per class, in one pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ssda.datasets.index import Index, Record, write_index
from ssda.datasets.layouts import Layout, RawImage, find_images, find_labels
from ssda.datasets.raw_files import image_facts, raw_table, read_train_ids
from ssda.files import fingerprint, naming, write_text
from ssda.labels import LabelSpace
from ssda.params import Size

Result = TypeVar("Result")

SAME_SHAPE = 1.05
"""How much wider or narrower than its image, at most, a label is that is resized."""
LISTED = 20
"""Problems that an error lists; the others are counted."""

# Neighbouring rows of a label are alike: the filter "up" halves the time of writing.
PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)


@dataclass
class _Task:
    """What all threads share; appending to a list is atomic."""

    layout: Layout
    root: Path
    out: Path | None
    """Folder of the converted labels; None: nothing is written."""
    labels: Mapping[str, str]
    """Image -> its label, where that is there."""
    table: NDArray[np.uint8]
    """Raw value -> train id or UNKNOWN."""
    num_classes: int
    decode: bool
    """Whether images are decoded, to see whether they are whole."""
    problems: list[str] = field(default_factory=list[str])
    resized: list[str] = field(default_factory=list[str])

    def attempt(self, path: str, work: Callable[[Path], Result]) -> Result | None:
        """The work on a file; None, and the problem noted, where it fails."""
        try:
            return work(self.root / path)
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            self.problems.append(f"{path}: {reason}")
            return None


def convert_split(
    layout: Layout,
    root: Path,
    split: str,
    out: Path,
    *,
    space: LabelSpace,
    with_labels: bool,
    resize: Size | None = None,
    progress: bool = False,
) -> Index:
    """Convert a raw split into the folder `out`, which is written as a whole or not at all.

    Images are checked (header, size, end of file), not copied. Without labels no label file is
    looked for or opened. `resize` is what training resizes images to, for the index alone.
    `progress` draws a bar on stderr.

    Raises ValueError that lists the first problems, one a file, and counts all of them; `out` is as
    it was then.
    """
    unfinished = out.with_name(out.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        (unfinished / "labels").mkdir(parents=True)
        records, task = _scan(
            layout, root, split, unfinished / "labels", space, with_labels, progress
        )
        if task.problems:
            place = f"{root} ({layout.name}, split {split})"
            raise ValueError(f"{place}: {listed(task.problems)}")
        if not with_labels:
            (unfinished / "labels").rmdir()
        index = Index(out, root, space, records, len(task.resized), resize)
        write_index(replace(index, folder=unfinished))
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return index


def check_split(
    layout: Layout,
    root: Path,
    split: str,
    *,
    space: LabelSpace,
    with_labels: bool,
    decode: bool = False,
    progress: bool = False,
) -> tuple[Index, list[str]]:
    """What `convert_split` would find, without writing anything; `decode` decodes images as well.

    Returns an index of the files that are right, whose labels are raw ones below `root`, and the
    problems, one a file.

    Raises ValueError where there is no image, or no label.
    """
    records, task = _scan(layout, root, split, None, space, with_labels, progress, decode)
    return Index(root, root, space, records, len(task.resized)), task.problems


def listed(problems: list[str]) -> str:
    """One problem as it is; of several the number and the first, a line each."""
    if len(problems) == 1:
        return problems[0]
    more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return "\n  ".join([f"{len(problems)} problems", *problems[:LISTED], *more])


def write_field_statistics(index: Index, folder: Path) -> None:
    """Write sample_class_stats.json and samples_with_class.json, as the field's tools read them.

    Files are named as in the split's folder labels/; classes that an image does not show are left
    out of both.
    """
    statistics: list[dict[str, int | str]] = []
    samples: dict[str, list[tuple[str, int]]] = {}
    for record in index.records:
        if record.label is None or record.class_pixels is None:
            continue
        pixels = {str(i): count for i, count in enumerate(record.class_pixels) if count}
        statistics.append({**pixels, "file": record.label})
        for class_id, count in pixels.items():
            samples.setdefault(class_id, []).append((record.label, count))
    in_order = {class_id: samples[class_id] for class_id in sorted(samples, key=int)}
    write_text(folder / "sample_class_stats.json", json.dumps(statistics) + "\n")
    write_text(folder / "samples_with_class.json", json.dumps(in_order) + "\n")


def _scan(
    layout: Layout,
    root: Path,
    split: str,
    out: Path | None,
    space: LabelSpace,
    with_labels: bool,
    progress: bool,
    decode: bool = False,
) -> tuple[tuple[Record, ...], _Task]:
    """Records of what is right; the task has the problems, sorted. Labels go to `out`, if any."""
    assert {*layout.ids.values()} <= {*space.names}, "check_classes comes first"
    images = find_images(layout, root, split)
    found = find_labels(layout, root, split, images) if with_labels else {}
    labels = {image: label for label, image in found.items() if image is not None}
    if with_labels and not labels:
        raise ValueError(f"{root} ({layout.name}, split {split}): no label matches {layout.labels}")
    task = _Task(layout, root, out, labels, raw_table(layout, space), space.num_classes, decode)
    if with_labels:
        lacking = [image for image in images if image.path not in labels]
        task.problems += [f"{image.path}: no label {image.label}" for image in lacking]
    title = f"{'convert' if out else 'check'} {split}"
    records = _convert_images(images, task, title, progress)
    void = with_labels and not any(any(record.class_pixels or ()) for record in records)
    if void and not task.problems:
        task.problems.append("all pixels of all labels are void")
    task.problems.sort()
    return records, task


def _convert_images(
    images: list[RawImage], task: _Task, title: str, progress: bool
) -> tuple[Record, ...]:
    # Threads are enough: decoding, encoding and look-up run outside the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        try:
            results = pool.map(partial(_convert_image, task), images)
            if progress:
                from tqdm import tqdm

                results = tqdm(results, title, len(images), unit=" images")
            return tuple(record for record in results if record is not None)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _convert_image(task: _Task, image: RawImage) -> Record | None:
    facts = task.attempt(
        image.path, lambda path: image_facts(path, task.layout.size, decode=task.decode)
    )
    digest = task.attempt(image.path, fingerprint) if facts else None
    label, raw = None, task.labels.get(image.path)
    if raw is not None:
        label = task.attempt(raw, lambda path: read_train_ids(path, task.layout, task.table))
    if facts is None or digest is None:
        return None
    width, height, size = facts
    record = Record(image.name, image.path, size, digest, None, width, height, None)
    if label is None:
        return record
    if label.shape != (height, width):
        stretch = label.shape[1] * height / (label.shape[0] * width)
        if not task.layout.resize_labels or not 1 / SAME_SHAPE <= stretch <= SAME_SHAPE:
            task.problems.append(
                f"{raw}: {label.shape[1]} x {label.shape[0]} pixels, "
                f"needed are the image's {width} x {height}"
            )
            return None
        # Train ids are categories: nothing but nearest neighbour keeps them.
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        task.resized.append(image.path)
    record = replace(record, class_pixels=count_classes(label, task.num_classes))
    if task.out is None:
        return replace(record, label=raw)
    file = image.name + ".png"
    with naming(task.out / file):
        (task.out / file).write_bytes(cv2.imencode(".png", label, PNG_OPTIONS)[1].tobytes())
    return replace(record, label=file)


def count_classes(label: cv2.typing.MatLike, num_classes: int) -> tuple[int, ...]:
    """Pixels of each class of a label (H, W).

    OpenCV counts bytes five times as fast as NumPy, in float32, which is exact to 2^24.
    """
    parts = np.array_split(label.ravel(), (label.size >> 24) + 1)
    counts = sum(cv2.calcHist([part], [0], None, [256], [0, 256]).astype(int) for part in parts)
    return tuple(np.ravel(counts)[:num_classes].tolist())
