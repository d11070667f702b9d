"""How raw data sets lie on disk: where images and labels are, and what their values mean."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from pydantic import Field, ValidationInfo, field_validator

from ssda.labels import CITYSCAPES_IDS, SYNTHIA_IDS, Byte, Colour, LabelSpace
from ssda.params import Size
from ssda.sections import Section, read_yaml, validate

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
    ids: Mapping[int, str]
    """Raw value -> name of a class. The raw value of a colour is red << 16 | green << 8 | blue."""
    void: tuple[int, ...] = ()
    """Raw values of pixels that are ignored; all others that are not in `ids` are errors."""
    size: tuple[int, int] | None = None
    """(width, height) in pixels of every image, where the layout says so."""
    resize_labels: bool = False
    """Labels of another size than their image, but of its shape, are resized and not refused."""


@dataclass(frozen=True)
class RawImage:
    """An image that was found, and where its label belongs. Paths are below the root."""

    path: str
    label: str
    name: str
    """Unique over the split: {name}, or {folder} and {name} where names repeat."""
    folder: str


def _rest(largest: int, ids: Mapping[int, str]) -> tuple[int, ...]:
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
    known = LAYOUTS.get(custom.like or "")
    layout = Layout(
        name=name_or_path,
        images=custom.images or (known.images if known else ""),
        labels=custom.labels or (known.labels if known else ""),
        values=known.values if known else "index",
        ids=known.ids if known else {},
        void=known.void if known else (),
        size=custom.size,
        resize_labels=known is not None and known.resize_labels,
    )
    void = tuple(raw if isinstance(raw, int) else pack(raw) for raw in custom.void)
    if custom.colours:
        ids = {pack(rgb): name for name, colours in custom.colours.items() for rgb in colours}
        return replace(layout, values="colours", ids=ids, void=void)
    if custom.ids:
        # What the known set has beyond the ids listed is void.
        rest = {*layout.ids, *layout.void} - {*custom.ids}
        return replace(layout, ids=custom.ids, void=tuple(sorted({*rest, *void})))
    return layout


def check_classes(layout: Layout, space: LabelSpace, labels: str) -> None:
    """ValueError, in one line, where a layout's class is not in the label space named `labels`."""
    for raw, name in layout.ids.items():
        if name not in space.names:
            raise ValueError(
                f"layout {layout.name}: {describe(layout, raw)} is {name!r}, which is no class of "
                f"labels {labels}: allowed are {', '.join(space.names)}"
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


class CustomLayout(Section):
    """A layout as a YAML file says it; patterns as in `Layout`."""

    like: Literal["gta", "synthia", "cityscapes"] | None = None
    """A known layout, which says what this file does not."""
    images: str | None = Field(default=None, validate_default=True)
    """Such as `rgb/{split}/*.jpg`."""
    labels: str | None = Field(default=None, validate_default=True)
    """Such as `ids/{split}/{name}_ids.png`."""
    ids: dict[Byte, str] | None = None
    """Raw id -> name of a class, of 8-bit or palette PNGs."""
    colours: dict[str, tuple[Colour, ...]] | None = Field(default=None, validate_default=True)
    """Name of a class -> RGB colour or list of colours, of colour PNGs; instead of `ids`."""
    void: tuple[Byte | Colour, ...] = ()
    """Raw ids (or colours) of pixels that are ignored."""
    size: Size | None = None
    """(width, height) in pixels that every image must have."""

    @field_validator("images", "labels")
    @classmethod
    def _check_pattern(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        if pattern is None:
            if info.data.get("like") is None:
                raise ValueError("missing: needed where there is no `like`")
            return None
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

    @field_validator("colours", mode="before")
    @classmethod
    def _list_colours(cls, colours: Any) -> Any:
        if not isinstance(colours, dict):
            return colours
        return {
            name: [value]
            if isinstance(value, list) and value and isinstance(value[0], int)
            else value
            for name, value in cast(dict[Any, Any], colours).items()
        }

    @field_validator("colours")
    @classmethod
    def _check_colours(
        cls, colours: dict[str, tuple[Colour, ...]] | None, info: ValidationInfo
    ) -> dict[str, tuple[Colour, ...]] | None:
        neither = "ids" in info.data and info.data["ids"] is None and colours is None
        if neither and info.data.get("like") is None:
            raise ValueError("give either ids or colours")
        if info.data.get("ids") is not None and colours is not None:
            raise ValueError("give either ids or colours")
        listed = [colour for several in (colours or {}).values() for colour in several]
        if len({*listed}) < len(listed):
            raise ValueError("classes must differ in colour")
        return colours

    @field_validator("void")
    @classmethod
    def _check_void(
        cls, void: tuple[int | Colour, ...], info: ValidationInfo
    ) -> tuple[int | Colour, ...]:
        ids: dict[int, str] = info.data.get("ids") or {}
        colours: dict[str, tuple[Colour, ...]] = info.data.get("colours") or {}
        if any(isinstance(raw, int) == bool(colours) for raw in void):
            raise ValueError("must hold ids beside ids, [red, green, blue] beside colours")
        classes: set[int | Colour] = {*ids}
        classes.update(colour for several in colours.values() for colour in several)
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
    """Sorted paths below root that match; ValueError where links lead to a folder twice."""
    if "**" in pattern:
        return sorted(_walk(root, pattern))
    escaped = glob.escape(pattern).replace("[*]", "*")
    found = glob.glob(escaped, root_dir=root, recursive=True)
    return sorted(path.replace(os.sep, "/") for path in found)


def _walk(root: Path, pattern: str) -> Generator[str]:
    """As glob does it, but for loops of links, which it follows for ever."""
    parts = ["(?:(?!\\.)[^/]+/)*" if part == "**" else _part(part) for part in pattern.split("/")]
    expression = re.compile("".join(parts).removesuffix("/"))
    seen: dict[str, str] = {}
    for folder, _, files in os.walk(root / _base(pattern), followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise ValueError(f"{folder}: a link to {seen[real]}, whose files would come twice")
        seen[real] = folder
        for file in files:
            path = os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/")
            if expression.fullmatch(path):
                yield path


def _part(pattern: str) -> str:
    hidden = "(?!\\.)" if pattern.startswith("*") else ""
    return hidden + re.escape(pattern).replace("\\*", "[^/]*") + "/"
