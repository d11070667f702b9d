"""Made-up raw sets in the layout of GTA, for questions of speed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ssda.datasets.conversion import convert_split
from ssda.datasets.index import Index
from ssda.datasets.layouts import load_layout
from ssda.labels import CITYSCAPES


def write_game(root: Path, count: int, size: tuple[int, int]) -> Path:
    """Images and labels of (width, height), numbered PNGs; returns the root.

    Images are soft shapes under weak noise, which makes PNGs of about 1.8 bytes a pixel (GTA's
    have 1.2); labels are blocks of Cityscapes ids.
    """
    layout = load_layout("gta")
    raw_ids = np.array(sorted(layout.ids), np.uint8)
    width, height = size
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        soft = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = cv2.resize(soft, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        image += rng.normal(0.0, 1.2, image.shape)
        cv2.imwrite(str(root / f"images/{i:05d}.png"), np.clip(image, 0, 255).astype(np.uint8))
        blocks = raw_ids[rng.integers(len(raw_ids), size=(height // 32 + 1, width // 32 + 1))]
        label = blocks.repeat(32, 0).repeat(32, 1)[:height, :width]
        cv2.imwrite(str(root / f"labels/{i:05d}.png"), label)
    return root


def convert_game(root: Path, out: Path) -> Index:
    """The set that `write_game` wrote, converted."""
    layout = load_layout("gta")
    out.parent.mkdir(parents=True, exist_ok=True)
    return convert_split(layout, root, "train", out, space=CITYSCAPES, with_labels=True)
