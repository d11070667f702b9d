"""The demo's writers make the raw layouts of GTA, SYNTHIA and Cityscapes; convert reads them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo.scenes import GAME, Look, city, draw_scene, write_cityscapes, write_gta, write_synthia
from ssda.datasets.conversion import convert_split
from ssda.datasets.layouts import load_layout
from ssda.labels import CITYSCAPES, CITYSCAPES_IDS, IGNORE

SIZE = (36, 72)
WRITERS: dict[str, tuple[Callable[[Path], None], Look, str]] = {
    "gta": (lambda root: write_gta(root, 3, size=SIZE, processes=1), GAME, "train"),
    "synthia": (lambda root: write_synthia(root, 3, size=SIZE, processes=1), GAME, "train"),
    "cityscapes": (
        lambda root: write_cityscapes(root, {"val": 3}, size=SIZE, processes=1),
        city(1.0),
        "val",
    ),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_labels_come_back_as_drawn(tmp_path: Path, layout: str) -> None:
    write, look, split = WRITERS[layout]
    write(tmp_path / "raw")
    index = convert_split(
        load_layout(layout),
        tmp_path / "raw",
        split,
        tmp_path / "out",
        space=CITYSCAPES,
        with_labels=True,
    )
    assert len(index.records) == 3
    drawn = [draw_scene(look, split, i, size=SIZE) for i in range(3)]
    for record, (image, ids) in zip(index.records, drawn, strict=True):
        stored = cv2.imread(str(index.image_path(record)))
        assert stored is not None
        np.testing.assert_array_equal(stored[..., ::-1], image)
        label = cv2.imread(str(index.label_path(record)), cv2.IMREAD_UNCHANGED)
        trains = {raw: CITYSCAPES.names.index(name) for raw, name in CITYSCAPES_IDS.items()}
        expected = [[trains.get(i, IGNORE) for i in row] for row in ids.tolist()]
        assert label is not None and label.tolist() == expected
