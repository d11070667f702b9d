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
from pipeline.presets import use
from pipeline.pretrain import pretrain
from ssda.datasets.index import read_sources
from ssda.datasets.loading import SourceSamples, source_batches
from ssda.params import Params, load_params
from ssda.sections import read_yaml, set_values
from tests.conftest import ROOT

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
    shutil.copytree(ROOT / "presets", folder / "presets")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
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


def take_as_synthia() -> None:
    """The source becomes a SYNTHIA whose label has 8 bits."""
    for folder in ("RGB", "GT/LABELS"):
        write_image(f"raw/game/{folder}/0.png")
    write_params(sources__game__layout="synthia")


def write_space(text: str, **overrides: Any) -> None:
    """Own classes, that no layout of the workspace fits."""
    Path("own.yaml").write_text(text, encoding="utf-8")
    write_params(labels="own.yaml", **overrides)


def converted(**overrides: Any) -> None:
    """Convert what is good, then change parameters of later stages."""
    convert(load_params("params.yaml"))
    write_params(**overrides)


def link_folder() -> None:
    """Two links back: what follows them sees 2^40 folders."""
    for name in ("again", "more"):
        Path(IMAGES, name).symlink_to(".")
    custom("images: 'images/**/*.png'\nlabels: 'labels/{folder}/{name}.png'")


GREY16 = np.zeros(SIZE[::-1], np.uint16)
OWN = "classes: {road: [0, 0, 0], car: [1, 1, 1]}\nthings: [car]\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
PARAMS = Path("params.yaml")

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
    "empty image": (
        lambda: Path(f"{IMAGES}/1.png").write_bytes(b""),
        convert,
        r"images/1\.png: not a readable PNG or JPEG",
    ),
    "text for an image": (
        lambda: Path(f"{IMAGES}/1.png").write_text("no image"),
        convert,
        r"images/1\.png: not a readable PNG or JPEG",
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
    "8 bits where 16 are needed": (
        take_as_synthia,
        convert,
        r"GT/LABELS/0\.png: 8-bit RGB PNG, needed is 16-bit RGB",
    ),
    "colours where ids are needed": (
        lambda: write_image(f"{LABELS}/1.png"),
        convert,
        r"labels/1\.png: 8-bit RGB PNG, needed is 8-bit grey or palette",
    ),
    "label of another size": (
        lambda: write_label(CITY_LABEL, (6, 4)),
        convert,
        r"town_0_gtFine_labelIds\.png: 6 x 4 pixels, needed are the image's 16 x 8",
    ),
    "evaluation image without label": (
        lambda: Path(CITY_LABEL).unlink(),
        convert,
        r"raw/city .*split val\): .*town_0_leftImg8bit\.png: no label gtFine/val/town/town_0_",
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
    "no label": (
        lambda: shutil.rmtree(LABELS),
        convert,
        r"raw/game \(gta, split train\): no label matches labels/\{name\}\.png",
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
    "folders that link to themselves": (
        link_folder,
        take_stock,
        r"raw/game/images/(again|more): a link to raw/game/images, whose files would come twice",
    ),
    "images smaller than the crop": (
        lambda: converted(images__crop=[32, 8]),
        pretrain,
        r"images\.crop = \[32, 8\]: larger than raw/game/images/0\.png, which is 16 x 8",
    ),
    "no class with enough pixels": (
        lambda: converted(sampling__min_pixels=1000, sampling__min_crop_ratio=0.01),
        pretrain,
        r"sampling\.min_pixels = 1000: no source image has more pixels of any class",
    ),
    "raw data that changed after convert": (
        lambda: converted() or truncate(f"{IMAGES}/1.png"),
        pretrain,
        r"raw data changed since convert: 1 of 3 images below raw/game .*; run dvc repro",
    ),
    "no conversion": (
        lambda: None,
        pretrain,
        r"data/converted/sources: no such folder; run dvc repro",
    ),
    # parameters
    "no parameters": (PARAMS.unlink, take_stock, r"params\.yaml: No such file"),
    "empty parameters": (
        lambda: PARAMS.write_text(""),
        take_stock,
        r"params\.yaml: input should be a valid dictionary",
    ),
    "parameters that are no text": (
        lambda: PARAMS.write_bytes(b"\xff\xfe\x00"),
        take_stock,
        r"params\.yaml: not valid YAML",
    ),
    "duplicate key": (
        lambda: edit_params("random_state: 0", "random_state: 0\nrandom_state: 0"),
        take_stock,
        r"params\.yaml: line \d+ not valid YAML: .*duplicate key",
    ),
    "aliases that grow to billions": (
        lambda: edit_params("random_state: 0", BOMB + "random_state: *a11"),
        take_stock,
        r"params\.yaml: line \d+ alias \*a0: write the value out",
    ),
    "python object": (
        lambda: edit_params("random_state: 0", "random_state: !!python/object/apply:os.getpid []"),
        take_stock,
        r"params\.yaml: line \d+ not valid YAML: could not determine a constructor",
    ),
    "negative radius": (
        lambda: write_params(adapt__trucrf__radius=-1),
        take_stock,
        r"params\.yaml: adapt\.trucrf\.radius = -1: input should be greater than or equal to 1",
    ),
    "threshold above 1": (
        lambda: write_params(adapt__pseudo_labels__confidence_threshold=1.2),
        take_stock,
        r"confidence_threshold = 1\.2: input should be less than or equal to 1",
    ),
    "number that is none": (
        lambda: write_params(adapt__losses__mix=float("nan")),
        take_stock,
        r"adapt\.losses\.mix = nan: input should be a finite number",
    ),
    "text for a number": (
        lambda: write_params(adapt__batch_size="four"),
        take_stock,
        r"adapt\.batch_size = 'four': input should be a valid integer",
    ),
    "unknown key": (
        lambda: write_params(adapt__trucrf__radios=5),
        take_stock,
        r"adapt\.trucrf\.radios = 5: no such key",
    ),
    "unknown encoder": (
        lambda: converted(model__encoder="resnet_of_mine"),
        pretrain,
        r"model\.encoder = 'resnet_of_mine': .*",
    ),
    "no source": (lambda: write_params(sources={}), convert, r"sources = \{\}: dictionary should"),
    "source whose name is a path": (
        lambda: edit_params("game:", "../game:"),
        take_stock,
        r"params\.yaml: sources\.\.\./game\.\[key\] = '\.\./game': string should match pattern",
    ),
    "source whose name DVC's run cache overlooks": (
        lambda: edit_params("game:", "size:"),
        take_stock,
        r"params\.yaml: sources = .*: 'size' cannot be the name of a source",
    ),
    "split that is a path": (
        lambda: write_params(target__train="../val"),
        take_stock,
        r"'leftImg8bit/\.\./val/.*' must lie below root",
    ),
    "unknown preset": (
        lambda: None,
        lambda _: use(["gta"], PARAMS),
        r"preset 'gta': allowed are ",
    ),
    # layouts and classes
    "unknown layout": (
        lambda: write_params(target__layout="city"),
        take_stock,
        r"layout 'city': allowed are gta, synthia, cityscapes and paths of \.yaml files",
    ),
    "layout that is not there": (
        lambda: write_params(target__layout="city.yaml"),
        take_stock,
        r"city\.yaml: No such file",
    ),
    "layout with a path out of its folder": (
        lambda: custom("images: '../game/*.png'"),
        take_stock,
        r"set\.yaml: images = '\.\./game/\*\.png': .* must lie below root",
    ),
    "layout with labels at an absolute path": (
        lambda: custom("labels: '/etc/{name}.png'"),
        take_stock,
        r"set\.yaml: labels = '/etc/\{name\}\.png': .* must lie below root",
    ),
    "layout without a name in its labels": (
        lambda: custom("labels: 'labels/all.png'"),
        take_stock,
        r"set\.yaml: labels = 'labels/all\.png': needs \{name\} and no \*",
    ),
    "layout with an unknown key": (
        lambda: custom("label: 'labels/{name}.png'"),
        take_stock,
        r"set\.yaml: label = 'labels/\{name\}\.png': no such key",
    ),
    "layout with an id that is no byte": (
        lambda: custom("ids: {700: road}"),
        take_stock,
        r"set\.yaml: ids\.700\.\[key\] = 700: input should be less than or equal to 255",
    ),
    "layout with a class that is not in the labels": (
        lambda: custom("ids: {7: street}"),
        take_stock,
        r"layout set\.yaml: 7 is 'street', which is no class of labels cityscapes: allowed are",
    ),
    "layout with a class that is void as well": (
        lambda: custom("void: [7]"),
        take_stock,
        r"set\.yaml: void = \[7\]: 7 is a class as well",
    ),
    "layout with ids and colours": (
        lambda: custom("colours: {road: [0, 0, 0]}"),
        take_stock,
        r"set\.yaml: colours = .*: give either ids or colours",
    ),
    "layout of another size than the images": (
        lambda: (
            write_image(f"{IMAGES}/1.png", (20, 8))
            or custom("ids: {7: road, 11: building, 23: sky, 26: car}\nsize: [16, 8]")
        ),
        convert,
        r"images/1\.png: 20 x 8 pixels, allowed is 16 x 8",
    ),
    "unknown labels": (
        lambda: write_params(labels="camvid"),
        take_stock,
        r"params\.yaml: labels = 'camvid': allowed are cityscapes and paths of \.yaml files",
    ),
    "labels of two classes of one colour": (
        lambda: write_space("classes: {road: [0, 0, 0], car: [0, 0, 0]}"),
        take_stock,
        r"own\.yaml: classes = .*: classes must differ in colour",
    ),
    "labels without what a layout has": (
        lambda: write_space(OWN),
        take_stock,
        r"layout gta: 8 is 'sidewalk', which is no class of labels own\.yaml: allowed are",
    ),
    "subset that the labels do not have": (
        lambda: write_space(OWN, evaluate__subsets=["13"]),
        take_stock,
        r"evaluate\.subsets = 13: allowed with labels own\.yaml are the subsets in it \(none\)",
    ),
    "feature distance without things": (
        lambda: write_space("classes: {road: [0, 0, 0], car: [1, 1, 1]}"),
        take_stock,
        r"feature_distance = 0\.005: must be 0 where labels own\.yaml name no things",
    ),
}


def files() -> dict[str, bytes]:
    """All files of the workspace with their content, but for the locks in .ssda."""
    return {
        path.as_posix(): b"loop" if path.is_symlink() else path.read_bytes()
        for path in Path().rglob("*")
        if (path.is_symlink() or path.is_file()) and path.parts[0] != ".ssda"
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
    said = capfd.readouterr()
    assert said.out.count("\n") <= 1  # what it was about to do
    assert [line for line in said.err.splitlines() if "MLflow" not in line] == []
    assert files() == before
    with pytest.raises((ValueError, OSError)):
        guard(lambda: stage(load_params("params.yaml")), debug=True)


GOOD: dict[str, Spoil] = {
    "nothing changed": lambda: None,
    "one image": lambda: [
        Path(f"{folder}/{number}.png").unlink() for folder in (IMAGES, LABELS) for number in (1, 2)
    ],
    "spaces and letters beyond ASCII": lambda: [
        Path(f"{folder}/1.png").rename(f"{folder}/Straße 1 (日本).png")
        for folder in (IMAGES, LABELS)
    ],
    "image that is a JPEG": lambda: write_image(f"{IMAGES}/1.png", format="JPEG"),
    "image of 16 bits": lambda: write_pixels(f"{IMAGES}/1.png", np.dstack([GREY16] * 3)),
    "grey image": lambda: write_label(f"{IMAGES}/1.png"),
    "label without image": lambda: Path(f"{IMAGES}/1.png").unlink(),
    "folder named as an image": lambda: Path(f"{IMAGES}/3.png").mkdir(),
    "endings in capitals": lambda: [
        Path(f"{folder}/1.png").rename(f"{folder}/1.PNG") for folder in (IMAGES, LABELS)
    ],
    "one label void": lambda: write_label(f"{LABELS}/1.png", value=0),
    "one class alone": lambda: [
        write_label(f"{LABELS}/{number}.png", value=7) for number in range(3)
    ],
    "folder that is a link": lambda: [
        Path(IMAGES).rename("elsewhere"),
        Path(IMAGES).symlink_to(Path("elsewhere").absolute()),
    ],
    "6e-05": lambda: edit_params("learning_rate: 0.0004", "learning_rate: 6e-05"),
    "number in quotes": lambda: edit_params("learning_rate: 0.0004", "learning_rate: '6e-05'"),
}


@pytest.mark.parametrize("row", GOOD)
def test_odd_input_is_taken(workspace: Path, row: str) -> None:
    GOOD[row]()
    params = load_params("params.yaml")
    take_stock(params)
    convert(params)
    (source,) = read_sources(Path("data/converted/sources"))
    batches = source_batches(
        SourceSamples([source], params.images, params.sampling, 0, "test"), range(2), 2, 0
    )
    assert [batch.images.shape for batch in batches] == [(2, 3, 8, 8)] * 2
