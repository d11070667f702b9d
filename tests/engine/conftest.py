from pathlib import Path
from typing import Any

import pytest

from demo.scenes import write_cityscapes, write_gta
from ssda.datasets.conversion import convert_split
from ssda.datasets.layouts import load_layout
from ssda.labels import CITYSCAPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four converted scenes of 64 x 32 px: source with labels, target without."""
    folder = tmp_path_factory.mktemp("sets")
    write_gta(folder / "game", 4, size=(36, 68), processes=1)
    write_cityscapes(folder / "city", {"train": 4}, size=(32, 64), processes=1)
    for name, layout, raw in (("source", "gta", "game"), ("target", "cityscapes", "city")):
        convert_split(
            load_layout(layout),
            folder / raw,
            "train",
            folder / name,
            space=CITYSCAPES,
            with_labels=name == "source",
        )
    return folder


@pytest.fixture(scope="session")
def small(pretrained: dict[str, Any]) -> dict[str, Any]:
    """Parameters to train the small network on these scenes, two steps each stage."""
    return pretrained | {
        "images.crop": [64, 32],
        "sampling.min_pixels": 10,
        "pretrain.iterations": 2,
        "adapt.iterations": 2,
        "runtime.workers": 0,
    }
