"""How raw data sets lie on disk: where images and labels are, and what their values mean."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ssda.labels import CITYSCAPES, CITYSCAPES_IDS, SYNTHIA_IDS
from ssda.params import Section, Size, read_yaml, validate

Values = Literal["index", "red16", "colours"]
"""Where a label PNG keeps its value: 8-bit index or palette, 16-bit red channel, RGB colour."""


@dataclass(frozen=True)
class Layout:
    """A raw set. Paths are below its root, with forward slashes; `*` and `**` are wildcards.

    In `images` the last part has exactly one `*`. What it stands for is the image's {name}:
    `*.jpg` makes the stem the name, `*_leftImg8bit.png` the stem without `_leftImg8bit`. {folder}
    is the path from the part before the first wildcard down to the image's folder.
    A layout without {split} in `images` has the one split `train`.
    """

    name: str
    """As given in params."""
    images: str
    """Pattern of the images; may hold {split}."""
    labels: str
    """Path of an image's label; holds {name}, may hold {split} and {folder}."""
    values: Values
    """Where labels keep their values."""
    ids: Mapping[int, int]
    """Raw value -> train id. The raw value of a colour is red << 16 | green << 8 | blue."""
    void: tuple[int, ...] = ()
    """Raw values of pixels that are ignored; all others that are not in `ids` are errors."""
    size: tuple[int, int] | None = None
    """(width, height) in pixels of every image, where the layout says so."""
    resize_labels: bool = False
    """Labels of another size than their image are resized instead of refused."""


@dataclass(frozen=True)
class RawImage:
    """An image that was found, and where its label belongs. Paths are below the root."""

    path: str
    label: str
    name: str
    """Unique over the split: {name}, or {folder} and {name} where names repeat."""
    folder: str


def _rest(largest: int, ids: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(raw for raw in range(largest + 1) if raw not in ids)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="gta",
            images="images/*.png",
            labels="labels/{name}.png",
            values="index",
            ids=CITYSCAPES_IDS,
            void=_rest(34, CITYSCAPES_IDS),
            resize_labels=True,
        ),
        Layout(
            name="synthia",
            images="RGB/*.png",
            labels="GT/LABELS/{name}.png",
            values="red16",
            ids=SYNTHIA_IDS,
            void=_rest(22, SYNTHIA_IDS),
        ),
        Layout(
            name="cityscapes",
            images="leftImg8bit/{split}/*/*_leftImg8bit.png",
            labels="gtFine/{split}/{folder}/{name}_gtFine_labelIds.png",
            values="index",
            ids=CITYSCAPES_IDS,
            void=_rest(34, CITYSCAPES_IDS),
        ),
    )
}


def load_layout(name_or_path: str) -> Layout:
    """A built-in layout by its name, or a custom one from a YAML file (see `CustomLayout`).

    Raises ValueError with one line that names the file, the key and what is allowed.
    """
    if name_or_path in LAYOUTS:
        return LAYOUTS[name_or_path]
    if not name_or_path.endswith((".yaml", ".yml")):
        allowed = ", ".join(LAYOUTS)
        raise ValueError(f"layout {name_or_path!r}: allowed are {allowed} and paths of .yaml files")
    custom = validate(CustomLayout, read_yaml(Path(name_or_path)), name_or_path)
    colours = custom.colours or {}
    return Layout(
        name=name_or_path,
        images=custom.images,
        labels=custom.labels,
        values="colours" if colours else "index",
        ids=custom.ids
        or {pack(rgb): CITYSCAPES.names.index(name) for name, rgb in colours.items()},
        void=tuple(raw if isinstance(raw, int) else pack(raw) for raw in custom.void),
        size=custom.size,
    )


def find_images(layout: Layout, root: Path, split: str) -> list[RawImage]:
    """The images of a split, sorted by name. No label is looked for.

    Raises ValueError for a split or folder that is not there, or without images.
    """
    if "{split}" not in layout.images and split != "train":
        raise ValueError(f"split {split!r} of layout {layout.name}: allowed is train")
    pattern = _below_root(layout.images.replace("{split}", split))
    base = _base(pattern)
    if not (root / base).is_dir():
        raise ValueError(f"{root / base}: no such folder; layout {layout.name} needs {pattern}")
    before, after = pattern.rpartition("/")[2].split("*")
    found: list[RawImage] = []
    for path in _matches(root, pattern):
        parent, _, file = path.rpartition("/")
        folder = parent[len(base) :].strip("/")
        name = file[len(before) : len(file) - len(after)]
        label = layout.labels.format(split=split, folder=folder, name=name)
        found.append(RawImage(path, label.replace("//", "/").lstrip("/"), name, folder))
    # Where labels lie beside the images, the pattern may match them as well.
    labels = {image.label for image in found}
    images = [image for image in found if image.path not in labels]
    if not images:
        raise ValueError(f"{root}: no image matches {pattern} of layout {layout.name}")
    if len({image.name for image in images}) < len(images):
        images = [replace(image, name=f"{image.folder}/{image.name}") for image in images]
        images = [replace(image, name=image.name.strip("/").replace("/", "_")) for image in images]
    for first, second in pairwise(sorted(images, key=lambda image: image.name)):
        if first.name == second.name:
            raise ValueError(f"{root}: {first.path} and {second.path} share a name")
    return sorted(images, key=lambda image: image.name)


def find_labels(layout: Layout, root: Path, split: str, images: list[RawImage]) -> list[str]:
    """Sorted paths of all label files of a split, with or without an image."""
    pattern = layout.labels.format(split=split, folder="**", name="*")
    paths = {image.path for image in images}
    return [path for path in _matches(root, _below_root(pattern)) if path not in paths]


def pack(colour: tuple[int, int, int]) -> int:
    """The raw value of an RGB colour."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def describe(layout: Layout, raw: int) -> str:
    """A raw value for a message: the id, or (red, green, blue)."""
    return str((raw >> 16, raw >> 8 & 255, raw & 255) if layout.values == "colours" else raw)


def describe_allowed(layout: Layout) -> str:
    """The raw values a label may have, for a message: `0-34, 255`, or where colours are listed."""
    allowed = sorted({*layout.ids, *layout.void})
    if layout.values == "colours":
        return f"the colours in {layout.name}"
    starts = [raw for raw in allowed if raw - 1 not in allowed]
    ends = [raw for raw in allowed if raw + 1 not in allowed]
    ranges = zip(starts, ends, strict=True)
    return ", ".join(f"{start}-{end}" if end > start else f"{start}" for start, end in ranges)


Byte = Annotated[int, Field(ge=0, le=255)]
TrainId = Annotated[int, Field(ge=0, lt=CITYSCAPES.num_classes)]
Colour = tuple[Byte, Byte, Byte]


class CustomLayout(Section):
    """A layout as a YAML file says it; patterns as in `Layout`."""

    images: str
    """Such as `rgb/{split}/*.jpg`."""
    labels: str
    """Such as `ids/{split}/{name}_ids.png`."""
    ids: dict[Byte, TrainId] | None = None
    """Raw id -> train id, of 8-bit or palette PNGs."""
    colours: dict[str, Colour] | None = Field(default=None, validate_default=True)
    """Class name -> RGB colour, of colour PNGs; instead of `ids`."""
    void: tuple[Byte | Colour, ...] = ()
    """Raw ids (or colours) of pixels that are ignored."""
    size: Size | None = None
    """(width, height) in pixels that every image must have."""

    @field_validator("images", "labels")
    @classmethod
    def _check_pattern(cls, pattern: str, info: ValidationInfo) -> str:
        known = {"{split}"} if info.field_name == "images" else {"{split}", "{folder}", "{name}"}
        unknown = {*re.findall(r"\{[^{}]*\}|[{}]", pattern)} - known
        if unknown:
            raise ValueError(f"allowed in braces are {', '.join(sorted(known))}")
        if info.field_name == "images" and PurePosixPath(pattern).name.count("*") != 1:
            raise ValueError("needs exactly one * after the last /")
        if info.field_name == "labels" and ("{name}" not in pattern or "*" in pattern):
            raise ValueError("needs {name} and no *")
        if info.field_name == "labels" and not pattern.endswith(".png"):
            raise ValueError("labels must be .png files")
        return _below_root(pattern)

    @field_validator("colours")
    @classmethod
    def _check_colours(
        cls, colours: dict[str, Colour] | None, info: ValidationInfo
    ) -> dict[str, Colour] | None:
        if "ids" in info.data and (info.data["ids"] is None) == (colours is None):
            raise ValueError("give either ids or colours")
        unknown = {*(colours or {})} - {*CITYSCAPES.names}
        if unknown:
            raise ValueError(
                f"no class {min(unknown)!r}: allowed are {', '.join(CITYSCAPES.names)}"
            )
        if colours and len({*colours.values()}) < len(colours):
            raise ValueError("classes must differ in colour")
        return colours

    @field_validator("void")
    @classmethod
    def _check_void(
        cls, void: tuple[int | Colour, ...], info: ValidationInfo
    ) -> tuple[int | Colour, ...]:
        ids, colours = info.data.get("ids"), info.data.get("colours")
        if any(isinstance(raw, int) != (colours is None) for raw in void):
            raise ValueError("must hold ids beside ids, [red, green, blue] beside colours")
        classes: set[int | Colour] = {*(ids or {}), *(colours or {}).values()}
        if classes & {*void}:
            raise ValueError(f"{min(classes & {*void}, key=str)} is a class as well")
        return void


def _below_root(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise ValueError(f"{path!r} must lie below root: no .., no leading /, no backslash")
    return path


def _base(pattern: str) -> str:
    """The folders before the first wildcard."""
    return pattern.partition("*")[0].rpartition("/")[0]


def _matches(root: Path, pattern: str) -> list[str]:
    escaped = glob.escape(pattern).replace("[*]", "*")
    found = glob.glob(escaped, root_dir=root, recursive=True)
    return sorted(path.replace(os.sep, "/") for path in found)
