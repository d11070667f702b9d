"""What single raw files hold: an image's size, a label's values as train ids."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def image_facts(path: Path, allowed: tuple[int, int] | None) -> tuple[int, int, int]:
    """Width, height and bytes of an image, from its header and end: pixels are not decoded.

    Raises ValueError or OSError for a broken file and for a size that is not allowed.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "MPO")) as image:
            width, height = image.size
            end = b"IEND" if image.format == "PNG" else b"\xff\xd9"
    except Exception as error:  # whatever a decoder raises on a broken file
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError("not a readable PNG or JPEG") from error
    size = _check_end(path, end)
    if allowed and (width, height) != allowed:
        raise ValueError(f"{width} x {height} pixels, allowed is {allowed[0]} x {allowed[1]}")
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


def _check_end(path: Path, end: bytes) -> int:
    """Size of a file in bytes; ValueError where the end marker is missing."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 32))
        if end not in file.read():
            raise ValueError("truncated: the image's end marker is missing")
    return size


def _read_values(path: Path, values: Values) -> NDArray[np.integer]:
    """Raw values of a label PNG, (H, W)."""
    with path.open("rb") as file:
        header = file.read(26)
    if header[:8] != b"\x89PNG\r\n\x1a\n" or len(header) < 26:
        raise ValueError("not a readable PNG")
    _check_end(path, b"IEND")
    bits, colour_type = header[24], header[25]
    if (bits, colour_type) not in PNG_KINDS[values]:
        needed = {"index": "8-bit grey or palette", "red16": "16-bit RGB", "colours": "8-bit RGB"}
        kind = COLOUR_TYPES.get(colour_type, "unknown")
        raise ValueError(f"{bits}-bit {kind} PNG, needed is {needed[values]}")
    try:
        with Image.open(path) as image:
            if values == "index":
                return np.asarray(image)
            if values == "colours":
                red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), 2, 0)
                return red << 16 | green << 8 | blue
            # Pillow has no 16-bit colour, OpenCV writes to stderr on a broken file: Pillow first.
            image.verify()
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        return np.asarray(pixels)[..., 2]  # OpenCV's order is blue, green, red
    except Exception as error:  # whatever a decoder raises on a broken file
        raise ValueError(f"not a readable PNG: {error}") from error
