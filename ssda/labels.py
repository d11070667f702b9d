"""Label spaces: class names, colours, countable classes; what the raw ids of known sets mean.

Everything in the project works on *train ids*: 0 ... C - 1, the positions of the classes in the
label space, and 255 for pixels that do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from ssda.sections import Section, read_yaml, validate

IGNORE = 255
"""Train id of pixels that count nowhere: not in a loss, not in a score."""

Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]
"""Red, green, blue."""


@dataclass(frozen=True)
class LabelSpace:
    """Names, colours, countable classes and subsets, in the order of the train ids."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    things: tuple[int, ...]
    """Train ids of countable classes, such as cars: only they are pulled to ImageNet features."""
    subsets: Mapping[str, tuple[int, ...]]
    """Train ids of the classes over which a further mIoU is taken, by the subset's name."""

    @property
    def num_classes(self) -> int:
        """C, the number of classes without the ignored one."""
        return len(self.names)

    def palette(self) -> np.ndarray:
        """Colours as a (256, 3) uint8 table; ids that are no class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colours
        return table

    def content(self) -> dict[str, Any]:
        """What a label-space YAML says; `parse_space` reads it."""
        return {
            "classes": dict(zip(self.names, self.colours, strict=True)),
            "things": [self.names[i] for i in self.things],
            "subsets": {name: [self.names[i] for i in ids] for name, ids in self.subsets.items()},
        }


# MLflow allows no other characters in the name of a metric, and DVC's metrics are split at dots.
Name = Annotated[
    str, StringConstraints(pattern=r"^\w[\w -]*$"), Field(coerce_numbers_to_str=True, max_length=60)
]


class SpaceFile(Section):
    """A label space as a YAML file says it."""

    classes: Annotated[dict[Name, Colour], Field(min_length=2, max_length=254)]
    """Name -> colour [red, green, blue], in the order of the train ids."""
    things: tuple[str, ...] = ()
    """Names of the countable classes."""
    subsets: dict[Name, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default_factory=dict[str, tuple[str, ...]]
    )
    """Name -> the classes over which a further mIoU is taken."""

    @field_validator("classes")
    @classmethod
    def _check_colours(cls, classes: dict[str, Colour]) -> dict[str, Colour]:
        if len({*classes.values()}) < len(classes):
            raise ValueError("classes must differ in colour")
        return classes

    @field_validator("things", "subsets")
    @classmethod
    def _check_names(cls, value: Any, info: ValidationInfo) -> Any:
        known = info.data.get("classes", {})
        listed = [value] if isinstance(value, tuple) else [*value.values()]
        unknown = sorted({name for names in listed for name in names} - {*known})
        if unknown and known:
            raise ValueError(f"no class {unknown[0]!r}: allowed are {', '.join(known)}")
        return value


def parse_space(content: Any, place: str) -> LabelSpace:
    """The label space that a YAML's content describes; ValueError, one line, names `place`."""
    parsed = validate(SpaceFile, content, place)
    names = tuple(parsed.classes)
    return LabelSpace(
        names,
        tuple(parsed.classes.values()),
        tuple(sorted(names.index(name) for name in parsed.things)),
        {
            subset: tuple(sorted(names.index(name) for name in members))
            for subset, members in parsed.subsets.items()
        },
    )


def load_space(name_or_path: str) -> LabelSpace:
    """A built-in label space by its name, or one's own from a YAML file (see `SpaceFile`).

    Raises ValueError with one line that names the file, the key and what is allowed.
    """
    if name_or_path in SPACES:
        return SPACES[name_or_path]
    if not name_or_path.endswith((".yaml", ".yml")):
        allowed = ", ".join(SPACES)
        raise ValueError(
            f"labels = {name_or_path!r}: allowed are {allowed} and paths of .yaml files"
        )
    return parse_space(read_yaml(Path(name_or_path)), name_or_path)


CITYSCAPES = parse_space(
    {
        "classes": {
            "road": (128, 64, 128),
            "sidewalk": (244, 35, 232),
            "building": (70, 70, 70),
            "wall": (102, 102, 156),
            "fence": (190, 153, 153),
            "pole": (153, 153, 153),
            "traffic light": (250, 170, 30),
            "traffic sign": (220, 220, 0),
            "vegetation": (107, 142, 35),
            "terrain": (152, 251, 152),
            "sky": (70, 130, 180),
            "person": (220, 20, 60),
            "rider": (255, 0, 0),
            "car": (0, 0, 142),
            "truck": (0, 0, 70),
            "bus": (0, 60, 100),
            "train": (0, 80, 100),
            "motorcycle": (0, 0, 230),
            "bicycle": (119, 11, 32),
        },
        "things": [
            *("traffic light", "traffic sign", "person", "rider", "car"),
            *("truck", "bus", "train", "motorcycle", "bicycle"),
        ],
        "subsets": {
            # The classes that SYNTHIA shows, and those of them that most papers report.
            "16": [
                *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
                *("traffic sign", "vegetation", "sky", "person", "rider", "car", "bus"),
                *("motorcycle", "bicycle"),
            ],
            "13": [
                *("road", "sidewalk", "building", "traffic light", "traffic sign", "vegetation"),
                *("sky", "person", "rider", "car", "bus", "motorcycle", "bicycle"),
            ],
        },
    },
    "cityscapes",
)
"""The 19 classes of the Cityscapes benchmark."""

SPACES = {"cityscapes": CITYSCAPES}

CITYSCAPES_IDS = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Cityscapes label id (also GTA's palette index) -> class; the other ids up to 34 are void."""

SYNTHIA_IDS = {
    1: "sky",
    2: "building",
    3: "road",
    4: "sidewalk",
    5: "fence",
    6: "vegetation",
    7: "pole",
    8: "car",
    9: "traffic sign",
    10: "person",
    11: "bicycle",
    12: "motorcycle",
    15: "traffic light",
    16: "terrain",
    17: "rider",
    18: "truck",
    19: "bus",
    20: "train",
    21: "wall",
}
"""SYNTHIA-RAND-CITYSCAPES id (red channel) -> class; the other ids up to 22 are void."""
