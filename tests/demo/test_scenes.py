"""The embedded benchmark: repeatable scenes, all classes, raw layouts as the real sets have."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from demo import scenes
from demo.drawing import LABEL_IDS
from ssda.labels import CITYSCAPES, CITYSCAPES_IDS, SYNTHIA_IDS

LOOKS = {"game": scenes.GAME, "city": scenes.city(1.0)}
SIZES = {"game": scenes.GAME_SIZE, "city": scenes.CITY_SIZE}
RARE = (
    *("wall", "fence", "pole", "traffic light", "traffic sign", "terrain"),
    *("person", "rider", "truck", "bus", "train", "motorcycle", "bicycle"),
)


@pytest.fixture(scope="module")
def shares() -> dict[str, np.ndarray]:
    """Permille of all pixels per label id (256,), over the first scenes of each look."""
    counts = {look: np.zeros(256) for look in SIZES}
    for look, size in SIZES.items():
        for index in range(36):
            _, labels = scenes.draw_scene(LOOKS[look], "train", index, size=size)
            counts[look] += np.bincount(labels.ravel(), minlength=256)
    return {look: 1000 * count / count.sum() for look, count in counts.items()}


@pytest.mark.parametrize("look", SIZES)
def test_scene_depends_only_on_its_address(look: str) -> None:
    size = SIZES[look]
    first = scenes.draw_scene(LOOKS[look], "val", 3, size=size)
    others = [
        scenes.draw_scene(LOOKS[look], "val", 4, size=size),
        scenes.draw_scene(LOOKS[look], "test", 3, size=size),
    ]
    again = scenes.draw_scene(LOOKS[look], "val", 3, size=size)
    for array, same in zip(first, again, strict=True):
        assert array.dtype == np.uint8
        assert array.shape[:2] == size
        assert np.array_equal(array, same)
    for other in others:
        assert not np.array_equal(first[1], other[1])


def test_difficulty_scales_both_differences() -> None:
    game, easy, hard = scenes.GAME, scenes.city(0.5), scenes.city(1.5)
    assert (game.photometric, game.structural) == (0, 0)
    assert easy.photometric < hard.photometric
    assert easy.structural < hard.structural
    easy_image, hard_image = (
        scenes.draw_scene(scenes.city(value), "train", 0, size=(64, 128))[0] for value in (0.5, 1.5)
    )
    assert hard_image.mean() < easy_image.mean()


def test_frequencies_change_how_often_things_are_drawn_and_how_wide_the_road_is() -> None:
    other = scenes.city(1.0, {"bicycle": 8, "bus": 5, "train": 0, "road": 0.6})
    counts = {name: np.zeros(256) for name in ("as it is", "other")}
    for name, look in (("as it is", LOOKS["city"]), ("other", other)):
        for index in range(24):
            _, labels = scenes.draw_scene(look, "train", index, size=(64, 128))
            counts[name] += np.bincount(labels.ravel(), minlength=256)
    ids = {name: raw for raw, name in CITYSCAPES_IDS.items()}
    ratio = {name: counts["other"][i] / counts["as it is"][i] for name, i in ids.items()}
    assert ratio["bicycle"] > 1.5 and ratio["bus"] > 1.5 and 0.4 < ratio["road"] < 0.8
    assert counts["as it is"][ids["train"]] > 0 and ratio["train"] == 0
    with pytest.raises(ValueError, match=r"frequencies.tram = 2: allowed are numbers >= 0 for"):
        scenes.city(1.0, {"tram": 2})


@pytest.mark.parametrize("look", SIZES)
def test_class_shares(look: str, shares: dict[str, np.ndarray]) -> None:
    share = {name: shares[look][raw] for name, raw in LABEL_IDS.items()}
    assert 200 < share["road"] < 340
    for name in ("building", "sky", "vegetation"):
        assert 60 < share[name] < 260
    for name in ("car", "sidewalk"):
        assert 35 < share[name] < 120
    for name in RARE:
        # The wanted 4 to 20 permille, with the slack that few scenes need.
        assert 1.5 < share[name] < 28, name


def test_void(shares: dict[str, np.ndarray]) -> None:
    assert shares["game"][LABEL_IDS["ego vehicle"]] == 0
    assert shares["city"][LABEL_IDS["ego vehicle"]] > 20
    allowed = set(LABEL_IDS.values())
    for look in SIZES:
        assert set(np.flatnonzero(shares[look])) <= allowed
        assert shares[look][LABEL_IDS["static"]] > 0


def test_gta_layout(tmp_path: Path) -> None:
    scenes.write_gta(tmp_path / "game", 2, size=(48, 80), processes=1)
    names = [f"{folder}/{name}" for folder in ("images", "labels") for name in ("00001", "00002")]
    assert files(tmp_path) == [f"game/{name}.png" for name in names]
    image, labels = scenes.draw_scene(scenes.GAME, "train", 1, size=(48, 80))
    assert np.array_equal(np.array(Image.open(tmp_path / "game/images/00002.png")), image)
    picture = Image.open(tmp_path / "game/labels/00002.png")
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture), labels)
    road = np.array(picture.convert("RGB"))[labels == LABEL_IDS["road"]]
    assert (road == CITYSCAPES.colours[0]).all()


def test_synthia_layout(tmp_path: Path) -> None:
    scenes.write_synthia(tmp_path / "synthia", 1, size=(48, 80), processes=1)
    assert files(tmp_path) == ["synthia/GT/LABELS/0000000.png", "synthia/RGB/0000000.png"]
    image, labels = scenes.draw_scene(scenes.GAME, "train", 0, size=(48, 80))
    root = tmp_path / "synthia"
    assert np.array_equal(np.array(Image.open(root / "RGB/0000000.png")), image)
    annotation = cv2.imread(str(root / "GT/LABELS/0000000.png"), cv2.IMREAD_UNCHANGED)
    assert annotation is not None
    assert annotation.dtype == np.uint16
    # OpenCV reads BGR: the red channel is the last one.
    for raw, name in SYNTHIA_IDS.items():
        drawn = np.isin(labels, [i for i, other in CITYSCAPES_IDS.items() if other == name])
        assert np.array_equal(annotation[..., 2] == raw, drawn), name


def test_cityscapes_layout(tmp_path: Path) -> None:
    counts = {"train": 2, "val": 1}
    scenes.write_cityscapes(tmp_path / "city", counts, size=(48, 96), processes=2)
    stems = ["train/town/town_000000_000019", "train/town/town_000001_000019"]
    stems.append("val/town/town_000000_000019")
    expected = [f"city/gtFine/{stem}_gtFine_labelIds.png" for stem in stems]
    expected += [f"city/leftImg8bit/{stem}_leftImg8bit.png" for stem in stems]
    assert files(tmp_path) == expected
    image, labels = scenes.draw_scene(LOOKS["city"], "train", 1, size=(48, 96))
    assert np.array_equal(np.array(Image.open(tmp_path / expected[1])), labels)
    assert np.array_equal(np.array(Image.open(tmp_path / expected[4])), image)


def test_nothing_half_written(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    with scenes.fresh_folder(root) as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), scenes.fresh_folder(root) as folder:
        (folder / "new").touch()
        raise RuntimeError
    assert files(tmp_path) == ["raw/old"]
    with scenes.fresh_folder(root) as folder:
        (folder / "new").touch()
    assert files(tmp_path) == ["raw/new"]
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def files(root: Path) -> list[str]:
    """All files under a folder, relative and sorted."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
