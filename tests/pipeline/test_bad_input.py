"""Bad input, a row each: the stage ends with one line that says what is wrong, and leaves nothing.

A row spoils a good workspace and names the stage that must notice and what its line must hold.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline.command import guard
from pipeline.convert import convert
from pipeline.inventory import inventory
from ssda.params import Params, load_params
from ssda.sections import read_yaml
from tests.conftest import ROOT, set_values

SIZE = (16, 8)  # width, height
IMAGES, LABELS = "raw/game/images", "raw/game/labels"
CITY_LABELS = "raw/city/gtFine/val/town"
CITY_LABEL = f"{CITY_LABELS}/town_0_gtFine_labelIds.png"
SMALL = {
    "sources.game.root": "raw/game",
    "target.root": "raw/city",
    "target.report": "val",
    "images.crop": [8, 8],
    "sampling.min_pixels": 5,
    "model.channels": 8,
    "runtime.workers": 0,
}

Spoil = Callable[[], object]
"""Spoils the workspace that is the working directory."""


def write_params(**overrides: Any) -> None:
    """Write params.yaml, small, with overrides such as sources__game__layout."""
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    values = set_values(read_yaml(ROOT / "params.yaml"), SMALL | changes)
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def write_image(path: str, size: tuple[int, int] = SIZE, **options: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_label(path: str, size: tuple[int, int] = SIZE, *, value: int | None = None) -> None:
    """Cityscapes ids of road, building, sky and car, or of one value."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(0).choice(np.array([7, 11, 23, 26], np.uint8), size[::-1])
    Image.fromarray(drawn if value is None else np.full_like(drawn, value)).save(path)


def write_workspace() -> None:
    for number in range(3):
        write_image(f"{IMAGES}/{number}.png")
        write_label(f"{LABELS}/{number}.png")
    for split in ("train", "val"):
        for number in range(2):
            name = f"{split}/town/town_{number}"
            write_image(f"raw/city/leftImg8bit/{name}_leftImg8bit.png")
            write_label(f"raw/city/gtFine/{name}_gtFine_labelIds.png")
    write_params()


@pytest.fixture(scope="module")
def good_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    before = Path.cwd()
    os.chdir(folder)
    write_workspace()
    os.chdir(before)
    return folder


@pytest.fixture
def workspace(good_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the good workspace, which is the working directory."""
    folder = tmp_path / "workspace"
    shutil.copytree(good_workspace, folder)
    monkeypatch.chdir(folder)
    return folder


def take_stock(params: Params) -> None:
    inventory(params, "game")


def edit_params(old: str, new: str) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")


def custom(text: str) -> None:
    """Describe the source by a layout YAML, good but for the text, whose keys replace others."""
    good = {"images": "'images/*.png'", "labels": "'labels/{name}.png'", "ids": "{7: road}"}
    changes = dict(line.split(": ", 1) for line in text.splitlines())
    lines = [f"{key}: {value}\n" for key, value in (good | changes).items() if value != "-"]
    Path("set.yaml").write_text("".join(lines), encoding="utf-8")
    write_params(sources__game__layout="set.yaml")


def truncate(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-20])


def write_pixels(path: str, pixels: np.ndarray) -> None:
    Path(path).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def make_loop(path: str) -> None:
    Path(path).unlink(missing_ok=True)
    Path(path).symlink_to(Path(path).name)


def make_void() -> None:
    for path in Path(LABELS).iterdir():
        write_label(str(path), value=0)


GREY16 = np.zeros(SIZE[::-1], np.uint16)
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

ROWS: dict[str, tuple[Spoil, Callable[[Any], object], str]] = {
    # raw data
    "truncated image": (
        lambda: truncate(f"{IMAGES}/1.png"),
        convert,
        r"raw/game \(gta, split train\): images/1\.png: truncated: the image's end marker",
    ),
    "truncated label": (
        lambda: truncate(f"{LABELS}/1.png"),
        convert,
        r"labels/1\.png: truncated: the image's end marker is missing",
    ),
    "label that is a JPEG": (
        lambda: write_image(f"{LABELS}/1.png", format="JPEG"),
        convert,
        r"labels/1\.png: not a readable PNG",
    ),
    "16 bits where 8 are needed": (
        lambda: write_pixels(f"{LABELS}/1.png", GREY16),
        convert,
        r"labels/1\.png: 16-bit grey PNG, needed is 8-bit grey or palette",
    ),
    "label of another size": (
        lambda: write_label(CITY_LABEL, (6, 4)),
        convert,
        r"town_0_gtFine_labelIds\.png: 6 x 4 pixels, needed are the image's 16 x 8",
    ),
    "id outside the map": (
        lambda: write_label(f"{LABELS}/1.png", value=77),
        convert,
        r"labels/1\.png: id 77: allowed are 0-34",
    ),
    "all labels void": (make_void, convert, r"raw/game .*: all pixels of all labels are void"),
    "no image": (
        lambda: shutil.rmtree(IMAGES) or Path(IMAGES).mkdir(),
        take_stock,
        r"raw/game: no image matches images/\*\.png of layout gta",
    ),
    "no folder": (
        lambda: shutil.rmtree("raw/city"),
        take_stock,
        r"raw/city/leftImg8bit/train: no such folder",
    ),
    "image that is a symlink to itself": (
        lambda: make_loop(f"{IMAGES}/1.png"),
        convert,
        r"images/1\.png: Too many levels of symbolic links",
    ),
    # YAML
    "duplicate key": (
        lambda: edit_params("random_state: 0", "random_state: 0\nrandom_state: 0"),
        take_stock,
        r"params\.yaml: line \d+ not valid YAML: .*duplicate key",
    ),
    "anchors that grow to billions": (
        lambda: edit_params("random_state: 0", BOMB + "random_state: *a11"),
        take_stock,
        r"params\.yaml: line \d+ alias \*a0: write the value out",
    ),
    "negative radius": (
        lambda: write_params(adapt__trucrf__radius=-1),
        take_stock,
        r"params\.yaml: adapt\.trucrf\.radius = -1: input should be greater than or equal to 1",
    ),
    "layout with a path out of its folder": (
        lambda: custom("images: '../game/*.png'"),
        take_stock,
        r"set\.yaml: images = '\.\./game/\*\.png': .* must lie below root",
    ),
}


def files() -> dict[str, bytes]:
    """All files of the workspace with their content."""
    return {
        path.as_posix(): b"loop" if path.is_symlink() else path.read_bytes()
        for path in Path().rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_one_line_and_leaves_nothing(
    workspace: Path, capfd: pytest.CaptureFixture[str], row: str
) -> None:
    spoil, stage, expected = ROWS[row]
    spoil()
    before = files()
    with pytest.raises(SystemExit) as caught:
        guard(lambda: stage(load_params("params.yaml")), debug=False)
    line = str(caught.value.code)
    assert line.startswith("error: ") and re.search(expected, line), line
    assert "\n" not in line and len(line) < 500
    assert capfd.readouterr() == ("", "")
    assert files() == before
    with pytest.raises((ValueError, OSError)):
        guard(lambda: stage(load_params("params.yaml")), debug=True)


def test_the_workspace_is_good_until_it_is_spoilt(workspace: Path) -> None:
    params = load_params("params.yaml")
    take_stock(params)
    convert(params)
