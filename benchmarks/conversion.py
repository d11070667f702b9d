"""How much faster are labels converted than by one full-mask pass a class?

Processor time, so that threads do not count in our favour: labels a second *a core*.

    python -m benchmarks.conversion
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.made_up import convert_game, write_game
from benchmarks.measure import Answer, command, interleave, ratio
from benchmarks.usual import convert_label, masked_train_ids
from ssda.datasets.conversion import PNG_OPTIONS, count_classes
from ssda.datasets.layouts import load_layout
from ssda.datasets.raw_files import raw_table, to_train_ids
from ssda.labels import CITYSCAPES

SIZE = (1914, 1052)


def compare(folder: Path, count: int, rounds: int) -> list[Answer]:
    """Look-up and counts alone, then whole labels: decode, look up, count, encode."""
    root = write_game(folder / "game", count, SIZE)
    layout = load_layout("gta")
    train_ids = {name: i for i, name in enumerate(CITYSCAPES.names)}
    ids = {raw: train_ids[name] for raw, name in layout.ids.items()}
    table = raw_table(layout, CITYSCAPES)
    labels = sorted((root / "labels").iterdir())
    raw = np.asarray(Image.open(labels[0]))

    def look_up() -> None:
        count_classes(to_train_ids(raw, table), CITYSCAPES.num_classes)

    def usual() -> None:
        for path in labels:
            convert_label(path, folder / "usual.png", ids)

    size = " x ".join(map(str, SIZE))
    ways = {"usual": lambda: masked_train_ids(raw, ids), "ours": look_up}
    mapping = ratio(
        f"train ids and counts of a label of {size}, against 19 masks",
        interleave(ways, 3 * rounds, time.process_time),
        ("usual", "ours"),
        "times as fast",
        bar=10.0,
        at_most=False,
    )

    def code() -> None:
        for path in labels:
            cv2.imencode(".png", np.asarray(Image.open(path)), PNG_OPTIONS)

    ways = {"usual": usual, "ours": lambda: convert_game(root, folder / "out"), "PNG alone": code}
    seconds = interleave(ways, rounds, time.process_time)
    coding = statistics.median(seconds["PNG alone"]) / statistics.median(seconds["ours"])
    whole = ratio(
        f"`convert` of {count} images of {size}, all included, against Pillow and 19 masks",
        seconds,
        ("usual", "ours"),
        "times as fast",
        bar=10.0,
        at_most=False,
        note=f"decoding and encoding PNG alone take {coding:.0%} of our time",
        details={"labels_a_second_a_core": round(count / statistics.median(seconds["ours"]), 1)},
    )
    return [mapping, whole]


def answers(images: int, rounds: int) -> list[Answer]:
    """In a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), images, rounds)


if __name__ == "__main__":
    command("conversion", __doc__, answers, images=16, rounds=3)
