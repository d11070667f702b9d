"""Facts about one converted split: which images it has and, for labelled ones, what they show."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssda.files import fingerprint, write_text
from ssda.labels import LabelSpace, parse_space
from ssda.params import Size
from ssda.sections import parse_json

INDEX = "index.json"


@dataclass(frozen=True)
class Record:
    """One image of a split."""

    name: str
    """Unique over the split."""
    image: str
    """Path of the image below the raw root, with forward slashes."""
    bytes: int
    """Size of the image file."""
    fingerprint: str
    """Of the image file, `ssda.files.fingerprint`."""
    label: str | None
    """File in the split's folder labels/: an 8-bit PNG of train ids; None without labels."""
    width: int
    """Pixels of image and label."""
    height: int
    """Pixels of image and label."""
    class_pixels: tuple[int, ...] | None
    """Pixels of each of the C classes; None without labels."""


@dataclass(frozen=True)
class Index:
    """A converted split; nothing of the machine is in it but where it was read from."""

    folder: Path
    """Where the index and the folder labels/ lie; not written."""
    root: Path
    """Raw folder as params say it: relative to the working directory unless absolute there."""
    space: LabelSpace
    """Classes of the labels."""
    records: tuple[Record, ...]
    """Sorted by name."""
    labels_resized: int = 0
    """Labels that were brought to the size of their image."""
    resize: Size | None = None
    """(width, height) that training resizes a source's images to; None keeps them."""

    def image_path(self, record: Record) -> Path:
        """Where the raw image lies."""
        return self.root / record.image

    def label_path(self, record: Record) -> Path:
        """Where the converted label lies; the record must have one."""
        assert record.label is not None, f"{record.name} has no label"
        return self.folder / "labels" / record.label


def class_frequencies(sources: Sequence[Index]) -> NDArray[np.float64]:
    """Share of each class in the labelled pixels of several sets together, (C,), sums to 1.

    Raises ValueError where they have no labelled pixel.
    """
    records = [record for source in sources for record in source.records]
    counts = [record.class_pixels for record in records if record.class_pixels is not None]
    total = np.sum(counts, axis=0, dtype=np.float64)
    if not total.sum() > 0:
        raise ValueError(
            f"{', '.join(str(source.folder) for source in sources)}: no labelled pixel"
        )
    return total / total.sum()


def read_sources(folder: Path) -> tuple[Index, ...]:
    """The index of each source in a folder, by name; raises ValueError as `read_index` does."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; run dvc repro")
    return tuple(read_index(source) for source in sorted(folder.iterdir()) if source.is_dir())


def read_index(folder: str | Path) -> Index:
    """The index in a folder; raises ValueError with one line where there is none."""
    path = Path(folder) / INDEX
    try:
        content = parse_json(path.read_bytes(), str(path))
        records = tuple(_record(values) for values in content["records"])
        space = parse_space(content["space"], str(path))
        resize = tuple(content["resize"]) if content["resize"] else None
        root, resized = Path(content["root"]), content["labels_resized"]
        return Index(Path(folder), root, space, records, resized, resize)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; run dvc repro") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not an index of this version; run dvc repro") from error


def write_index(index: Index) -> None:
    """Write index.json into the index's folder, one record a line, sorted by name."""
    records = sorted(index.records, key=lambda record: record.name)
    lines = ",\n".join(json.dumps(vars(record)) for record in records)
    facts = {
        "root": index.root.as_posix(),
        "space": index.space.content(),
        "labels_resized": index.labels_resized,
        "resize": index.resize,
    }
    head = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in facts.items())
    write_text(index.folder / INDEX, f'{{{head},\n"records": [\n{lines}\n]}}\n')


def check_raw_files(index: Index) -> None:
    """Raise ValueError, in one line, where images are gone or not those of the conversion.

    Files are opened only where they changed after the index did.
    """
    written = (index.folder / INDEX).stat().st_mtime_ns
    changed = [record.image for record in index.records if _changed(index, record, written)]
    if changed:
        raise ValueError(
            f"raw data changed since convert: {len(changed)} of {len(index.records)} images "
            f"below {index.root} ({', '.join(changed[:3])}{', ...' if changed[3:] else ''}); "
            "run dvc repro"
        )


def _record(values: dict[str, Any]) -> Record:
    counts = values.pop("class_pixels")
    return Record(**values, class_pixels=None if counts is None else tuple(counts))


def _changed(index: Index, record: Record, written: int) -> bool:
    path = f"{index.root}/{record.image}"
    try:
        status = os.stat(path)
        same = status.st_size == record.bytes and (
            max(status.st_mtime_ns, status.st_ctime_ns) < written
            or fingerprint(path) == record.fingerprint
        )
    except OSError:
        return True
    return not same
