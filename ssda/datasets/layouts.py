"""How raw data sets lie on disk: where images and labels are, and what their values mean."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn, cast

from pydantic import Field, ValidationInfo, field_validator

from ssda.files import check_names, walk
from ssda.labels import CITYSCAPES_IDS, SYNTHIA_IDS, Byte, Colour, LabelSpace
from ssda.params import Size
from ssda.sections import Section, read_yaml, validate

Values = Literal["index", "red16", "colours"]
"""Where a label PNG keeps its value: 8-bit index or palette, 16-bit red channel, RGB colour."""


@dataclass(frozen=True)
class Layout:
    """A raw set. Paths are below its root, with forward slashes; `*` and `**` are wildcards.

    In a pattern of `images` the last part has exactly one `*`. What it stands for is the image's
    {name}: `*.jpg` makes the stem the name, `*_leftImg8bit.png` the stem without `_leftImg8bit`.
    {folder} is the path from the part before the first wildcard, of all patterns, down to the
    image's folder. Endings match in any case, links are followed, hidden files never match `*`.
    A layout without {split} in `images` has the one split `train`.
    """

    name: str
    """As given in params."""
    images: tuple[str, ...]
    """Patterns of the images; may hold {split}."""
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
    """As the layout says it; the ending of the file may be in another case."""
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
            images=("images/*.png",),
            labels="labels/{name}.png",
            values="index",
            ids=CITYSCAPES_IDS,
            void=_rest(34, CITYSCAPES_IDS),
            resize_labels=True,
        ),
        Layout(
            name="synthia",
            images=("RGB/*.png",),
            labels="GT/LABELS/{name}.png",
            values="red16",
            ids=SYNTHIA_IDS,
            void=_rest(22, SYNTHIA_IDS),
        ),
        Layout(
            name="cityscapes",
            images=("leftImg8bit/{split}/*/*_leftImg8bit.png",),
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
        images=_several(custom.images) or (known.images if known else ()),
        labels=custom.labels or (known.labels if known else ""),
        values=known.values if known else "index",
        ids=known.ids if known else {},
        void=known.void if known else (),
        size=custom.size,
        resize_labels=known is not None and known.resize_labels,
    )
    void = {raw if isinstance(raw, int) else pack(raw) for raw in custom.void}
    if custom.colours:
        ids = {pack(rgb): name for name, colours in custom.colours.items() for rgb in colours}
        return replace(layout, values="colours", ids=ids, void=tuple(sorted(void)))
    # The file comes before the known set: what that has beyond the ids listed is void.
    ids = custom.ids or {raw: name for raw, name in layout.ids.items() if raw not in void}
    rest = {*layout.ids, *layout.void, *void} - {*ids}
    return replace(layout, ids=ids, void=tuple(sorted(rest)))


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

    Raises ValueError for a split or folder that is not there, or without images, for two images of
    one name, and for names that cannot be written down.
    """
    patterns = _patterns(layout, split)
    base = _base(patterns)
    images: list[RawImage] = []
    for pattern in patterns:
        if not (root / _base([pattern])).is_dir():
            place = root / _base([pattern])
            raise ValueError(f"{place}: no such folder; layout {layout.name} needs {pattern}")
        before, after = pattern.rpartition("/")[2].split("*")
        for path in _matches(root, pattern):
            parent, _, file = path.rpartition("/")
            folder = parent[len(base) :].strip("/")
            name = file[len(before) : len(file) - len(after)]
            images.append(RawImage(path, _label(layout, split, folder, name), name, folder))
    # Where labels lie beside the images, the pattern may match them as well.
    labels = {_plain(image.label) for image in images}
    found = {image.path: image for image in images if _plain(image.path) not in labels}
    images = list(found.values())
    if not images:
        raise ValueError(
            f"{root}: no image matches {' or '.join(patterns)} of layout {layout.name}"
        )
    check_names(root, found)
    if len({image.name for image in images}) < len(images):
        images = [replace(image, name=f"{image.folder}/{image.name}") for image in images]
        images = [replace(image, name=image.name.strip("/").replace("/", "_")) for image in images]
    images.sort(key=lambda image: image.name)
    for first, second in pairwise(images):
        if first.name == second.name:
            what = f"name and label {first.label}" if first.label == second.label else "name"
            both = f"{first.path} and {second.path}"
            raise ValueError(f"{root}: {both} share a {what}: rename one of them")
    return images


def find_labels(
    layout: Layout, root: Path, split: str, images: Sequence[RawImage]
) -> dict[str, str | None]:
    """{label file: path of its image, or None where it has none}, sorted, of a split.

    Raises ValueError where two images share a label, or an image has two.
    """
    expected: dict[str, RawImage] = {}
    for image in images:
        other = expected.setdefault(_plain(image.label), image)
        if other is not image:
            _refuse_sharing(layout, root, other, image)
    files = {image.path for image in images}
    found: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for path in _label_files(layout, root, split):
        image = expected.get(_plain(path))
        if image is not None:
            found[path] = image.path
            if first.setdefault(image.path, path) != path:
                both = f"{first[image.path]} and {path}"
                raise ValueError(f"{root}: {both} are labels of {image.path}: remove one of them")
        elif path not in files:
            found[path] = None
    check_names(root, first.values())
    return found


def left_out(layout: Layout, root: Path, split: str, *, with_labels: bool) -> list[str]:
    """Lines on what a split's folders hold beside its images and their labels; often empty.

    Names alone are looked at, and none of labels but `with_labels`.
    """
    images = find_images(layout, root, split)
    used = {_plain(path) for image in images for path in (image.path, image.label)}
    labels = find_labels(layout, root, split, images) if with_labels else {}
    lost = sum(image is None for image in labels.values())
    used |= {_plain(path) for path in labels}
    beside = {file for pattern in _patterns(layout, split) for file in _files(root, pattern)}
    beside = {file for file in beside if _plain(file) not in used and "/." not in f"/{file}"}
    endings = Counter(PurePosixPath(file).suffix.lower() or "no ending" for file in beside)
    lines = [f"{lost} labels without image left out"] if lost else []
    if beside:
        kinds = ", ".join(f"{ending} {count}" for ending, count in sorted(endings.items()))
        lines.append(f"{len(beside)} files beside the images left out ({kinds})")
    return lines


def _patterns(layout: Layout, split: str) -> tuple[str, ...]:
    if not any("{split}" in pattern for pattern in layout.images) and split != "train":
        raise ValueError(f"split {split!r} of layout {layout.name}: allowed is train")
    return tuple(_below_root(pattern.replace("{split}", split)) for pattern in layout.images)


def _label(layout: Layout, split: str, folder: str, name: str) -> str:
    label = layout.labels.format(split=split, folder=folder, name=name)
    return label.replace("//", "/").lstrip("/")


def _label_files(layout: Layout, root: Path, split: str) -> list[str]:
    """Sorted files where labels of the split may lie, for images that are there or not."""
    patterns = _patterns(layout, split)
    skipped = len(_base(patterns))
    folders = {pattern.rpartition("/")[0][skipped:].strip("/") for pattern in patterns}
    found = (_matches(root, _label(layout, split, folder, "*")) for folder in folders)
    return sorted({path for paths in found for path in paths})


def _refuse_sharing(layout: Layout, root: Path, first: RawImage, second: RawImage) -> NoReturn:
    help = "images must match only one of them"
    if first.folder != second.folder and "{folder}" not in layout.labels:
        help = f"labels needs {{folder}}, or {help}"
    both = f"{first.path} and {second.path}"
    raise ValueError(
        f"{root}: {both} share the label {first.label} of layout {layout.name}: {help}"
    )


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
    images: str | tuple[str, ...] | None = Field(default=None, validate_default=True)
    """Such as `rgb/{split}/*.jpg`; a pattern or a list of patterns."""
    labels: str | None = Field(default=None, validate_default=True)
    """Such as `ids/{split}/{name}_ids.png`."""
    ids: Annotated[dict[Byte, str], Field(min_length=1)] | None = None
    """Raw id -> name of a class, of 8-bit or palette PNGs."""
    colours: (
        Annotated[
            dict[str, Annotated[tuple[Colour, ...], Field(min_length=1)]], Field(min_length=1)
        ]
        | None
    ) = Field(default=None, validate_default=True)
    """Name of a class -> RGB colour or list of colours, of colour PNGs; instead of `ids`."""
    void: tuple[Byte | Colour, ...] = ()
    """Raw ids (or colours) of pixels that are ignored."""
    size: Size | None = None
    """(width, height) in pixels that every image must have."""

    @field_validator("images", "labels")
    @classmethod
    def _check_patterns(
        cls, given: str | tuple[str, ...] | None, info: ValidationInfo
    ) -> str | tuple[str, ...] | None:
        if not given and (given is not None or info.data.get("like") is None):
            raise ValueError("missing: needed where there is no `like`")
        images = info.field_name == "images"
        known = {"{split}"} if images else {"{split}", "{folder}", "{name}"}
        for pattern in _several(given):
            if {*re.findall(r"\{[^{}]*\}|[{}]", pattern)} - known:
                raise ValueError(f"allowed in braces are {', '.join(sorted(known))}")
            if images and PurePosixPath(pattern).name.count("*") != 1:
                raise ValueError("needs exactly one * after the last /")
            if not images and ("{name}" not in pattern or "*" in pattern):
                raise ValueError("needs {name} and no *")
            if not images and not pattern.lower().endswith(".png"):
                raise ValueError("labels must be .png files")
            _below_root(pattern)
        return given

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


def _several(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given or ()


def _below_root(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise ValueError(f"{path!r} must lie below root: no .., no leading /, no backslash")
    return path


def _plain(path: str) -> str:
    """A path with its ending in lower case."""
    stem, dot, ending = path.rpartition(".")
    return stem + dot + ending.lower()


def _base(patterns: Sequence[str]) -> str:
    """The folders before the first wildcard that all patterns share."""
    return os.path.commonpath(
        [pattern.partition("*")[0].rpartition("/")[0] for pattern in patterns]
    )


def _matches(root: Path, pattern: str) -> list[str]:
    """Sorted paths of files below root that match, the ending in any case."""
    expression = _expression(pattern)
    stem, dot, ending = pattern.rpartition(".")
    if dot and "*" not in ending:
        expression = f"{_expression(stem)}(?i:{re.escape(dot + ending)})"
    matches = re.compile(expression).fullmatch
    return sorted(path for path in _files(root, pattern) if matches(path))


def _files(root: Path, pattern: str) -> Generator[str]:
    """Files below root in all folders on the way of a pattern."""
    *folders, _ = pattern.split("/")
    known = [*takewhile(lambda folder: "**" not in folder, folders)]
    way = "".join(f"(?:{_expression(folder)}/" for folder in known)
    deeper = _ANY_FOLDERS if len(known) < len(folders) else ""
    enters = re.compile(way + deeper + ")?" * len(known)).fullmatch
    above = f"{root}/".replace("//", "/")
    for path in walk(above + _base([pattern]), lambda folder: enters(f"{folder[len(above) :]}/")):
        yield path[len(above) :]


_ANY_FOLDERS = "(?:(?!\\.)[^/]+/)*"


def _expression(pattern: str) -> str:
    """What matches as it does for glob, but that `**` beside other letters crosses folders."""
    parts = (_ANY_FOLDERS if part == "**" else f"{_part(part)}/" for part in pattern.split("/"))
    return "".join(parts).removesuffix("/")


def _part(pattern: str) -> str:
    hidden = "(?!\\.)" if pattern.startswith("*") else ""
    return hidden + re.escape(pattern).replace("\\*\\*", ".*").replace("\\*", "[^/]*")
