"""Label spaces: class names, colours, id maps of the raw sets.

Everything in the project works on *train ids*: 0 ... C - 1, and 255 for pixels that do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORE = 255
"""Train id of pixels that count nowhere: not in a loss, not in a score."""


@dataclass(frozen=True)
class LabelSpace:
    """Names, colours (RGB, 0 to 255) and countable classes, in the order of the train ids."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    things: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """C, the number of classes without the ignored one."""
        return len(self.names)

    def palette(self) -> np.ndarray:
        """Colours as a (256, 3) uint8 table; ids that are no class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colours
        return table


CITYSCAPES = LabelSpace(
    names=(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    colours=(
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
    things=(6, 7, 11, 12, 13, 14, 15, 16, 17, 18),
)

# Raw id -> train id; ids that are not listed become IGNORE, ids above the set's largest are errors.
CITYSCAPES_IDS: dict[int, int] = dict(
    zip(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        range(19),
        strict=True,
    )
)
"""Cityscapes label id (also GTA's palette index) -> train id; the other ids up to 34 are void."""

SYNTHIA_IDS = {
    3: 0,
    4: 1,
    2: 2,
    21: 3,
    5: 4,
    7: 5,
    15: 6,
    9: 7,
    6: 8,
    16: 9,
    1: 10,
    10: 11,
    17: 12,
    8: 13,
    18: 14,
    19: 15,
    20: 16,
    12: 17,
    11: 18,
}
"""SYNTHIA-RAND-CITYSCAPES class (red channel) -> train id; the other classes up to 22 are void."""

WITHOUT_16 = (9, 14, 16)
"""Train ids that SYNTHIA does not show: terrain, truck, train."""

WITHOUT_13 = (3, 4, 5, 9, 14, 16)
"""Train ids left out of SYNTHIA's 13-class score: wall, fence and pole as well."""


def lookup_table(id_map: dict[int, int], void: tuple[int, ...], size: int = 256) -> np.ndarray:
    """A (size,) int16 table raw id -> train id; void ids give IGNORE, unknown ones -1.

    Raises ValueError where an id does not fit the table.
    """
    table = np.full(size, -1, np.int16)
    for raw in void:
        table[raw] = IGNORE
    for raw, train in id_map.items():
        if not 0 <= raw < size:
            raise ValueError(f"raw id {raw}: allowed are 0 to {size - 1}")
        table[raw] = train
    return table
