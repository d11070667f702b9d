"""What single raw files hold: an image's size, a label's values as train ids."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ssda.datasets.image_files import PNG, decode, find_fault, read_end, read_header, read_rgb
from ssda.datasets.layouts import Layout, Values, describe, describe_allowed
from ssda.labels import IGNORE, LabelSpace

UNKNOWN = 254
"""Stands for raw values outside the map, while a label is converted."""

COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}
# (bits, PNG colour type) that can hold the values.
PNG_KINDS: dict[Values, tuple[tuple[int, int], ...]] = {
    "index": ((8, 0), (8, 3), (4, 3), (2, 3), (1, 3)),
    "red16": ((16, 2), (16, 6)),
    "colours": ((8, 2), (8, 6), (8, 3), (4, 3), (2, 3), (1, 3)),
}
BITS: dict[Values, int] = {"index": 8, "red16": 16, "colours": 24}


def image_facts(
    path: Path, allowed: tuple[int, int] | None, *, decode: bool = False
) -> tuple[int, int, int]:
    """Width and height, as shown, and bytes of an image.

    They come from its header and end; pixels are decoded where `decode` says so, and of 16-bit
    images, which may be too dark.

    Raises ValueError or OSError for a broken file and for a size that is not allowed.
    """
    with path.open("rb") as file:
        header = read_header(file)
        size = read_end(file)
    width, height = header.size()
    if allowed and (width, height) != allowed:
        raise ValueError(f"{width} x {height} pixels, allowed is {allowed[0]} x {allowed[1]}")
    if decode or header.bits > 8:
        read_rgb(path)
    return width, height, size


def raw_table(layout: Layout, space: LabelSpace) -> NDArray[np.uint8]:
    """Raw value -> train id, IGNORE or UNKNOWN."""
    table = np.full(1 << BITS[layout.values], UNKNOWN, np.uint8)
    table[list(layout.void)] = IGNORE
    table[list(layout.ids)] = [space.names.index(name) for name in layout.ids.values()]
    return table


def read_train_ids(path: Path, layout: Layout, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A label as train ids, (H, W), by the table of its layout.

    Raises ValueError or OSError for a broken file and for values that the layout does not list.
    """
    raw = _read_values(path, layout.values)
    label = to_train_ids(raw, table)
    unknown = np.unique(raw[label == UNKNOWN])
    if unknown.size:
        some = ", ".join(describe(layout, raw_id) for raw_id in unknown[:5].tolist())
        more = f" and {unknown.size - 5} more" if unknown.size > 5 else ""
        word = "colour" if layout.values == "colours" else "id"
        raise ValueError(f"{word} {some}{more}: allowed are {describe_allowed(layout)}")
    return label


def to_train_ids(raw: NDArray[np.integer], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the table says of each raw value (H, W); OpenCV looks bytes up twice as fast."""
    if raw.dtype == np.uint8:
        return np.asarray(cv2.LUT(raw, table), np.uint8)
    return np.take(table, raw)


def _read_values(path: Path, values: Values) -> NDArray[np.integer]:
    """Raw values of a label PNG, (H, W)."""
    content = path.read_bytes()
    if not content.startswith(PNG) or len(content) < 26:
        raise ValueError("not a readable PNG")
    if fault := find_fault(content):
        raise ValueError(fault)
    bits, colour_type = content[24], content[25]
    if (bits, colour_type) not in PNG_KINDS[values]:
        needed = {"index": "8-bit grey or palette", "red16": "16-bit RGB", "colours": "8-bit RGB"}
        kind = COLOUR_TYPES.get(colour_type, "unknown")
        raise ValueError(f"{bits}-bit {kind} PNG, needed is {needed[values]}")
    if values == "red16":  # Pillow has no 16-bit colour
        return decode(content, cv2.IMREAD_UNCHANGED)[..., 2]  # OpenCV's order is blue, green, red
    from PIL import Image

    # `read_header` refuses what is too large; Pillow's own limit is lower, half of it a warning.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            if values == "index":
                return np.asarray(image)
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), 2, 0)
            return red << 16 | green << 8 | blue
    except Exception as error:  # whatever a decoder raises on a broken file
        raise ValueError(f"damaged: {error}") from error
