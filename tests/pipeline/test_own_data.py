"""docs/own-data.md on a set of another structure: JPEGs, labels in colours, five own classes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

import ssda
from pipeline import adapt, convert, evaluate, inventory, predict, pretrain
from pipeline.checks import conversion
from pipeline.checks.conversion import check
from pipeline.overlays import load_preset
from ssda.datasets.index import read_index
from ssda.datasets.layouts import LAYOUTS, load_layout
from ssda.engine.checkpoints import load_network, trained_size
from ssda.params import Params, load_params
from ssda.sections import changed, read_yaml, set_values
from tests.conftest import ROOT, SMALL_ENCODER, write_encoder

WIDTH, HEIGHT = 640, 480
FILES = {
    match[1]: match[0]
    for match in re.finditer(
        r"(?<=```yaml\n)# (\S+\.yaml).*?(?=```)", (ROOT / "docs/own-data.md").read_text(), re.S
    )
}
"""The YAML files that the document shows."""
YAML_1_2 = YAML(typ="safe", pure=True)
COLOURS = {
    name: tuple(colour) for name, colour in YAML_1_2.load(FILES["own.yaml"])["classes"].items()
}
FENCE, EDGE = (60, 160, 60), (0, 0, 0)  # also tree; void
SMALL = {
    "sources.simulator.resize": [160, 120],
    "images.target_size": [160, 120],
    "images.crop": [96, 64],
    "model.encoder": SMALL_ENCODER,
    "model.channels": 8,
    "model.weights": "encoder.safetensors",
    "pretrain.iterations": 2,
    "pretrain.batch_size": 2,
    "adapt.iterations": 2,
    "adapt.batch_size": 2,
    "evaluate.pictures": 1,
    "evaluate.subsets": ["built"],
    "runtime.workers": 0,
    "runtime.log_every": 1,
}


def write_scene(root: Path, name: str, seed: int, *, labelled: bool = True) -> np.ndarray:
    """Rectangles of the classes on ground, with a void edge; returns the colours of the label."""
    rng = np.random.default_rng(seed)
    label = np.full((HEIGHT, WIDTH, 3), COLOURS["ground"], np.uint8)
    for colour in [*list(COLOURS.values())[1:], FENCE] * 2:
        y, x = int(rng.integers(HEIGHT - 160)), int(rng.integers(WIDTH - 160))
        label[y : y + 150, x : x + 150] = colour
    label[:3] = EDGE
    noise = rng.normal(0, 10, label.shape)
    photo, mask = root / f"photos/{name}.jpg", root / f"masks/{name}_mask.png"
    photo.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((label + noise).clip(0, 255).astype(np.uint8)).save(photo)
    if labelled:
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(mask)
    return label


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("own")
    for seed in range(3):
        write_scene(folder / "simulator", f"all/site_{seed % 2 + 1}/{seed:03}", seed)
        write_scene(folder / "flights", f"new/Tag Ä/{seed}", seed + 10, labelled=False)
    write_scene(folder / "flights", "old/0", 20)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_encoder(folder / "encoder.safetensors")
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    preset = load_preset("own").model_dump(mode="json", by_alias=True)
    values = preset | read_yaml(folder / "params.yaml")
    with (folder / "params.yaml").open("w") as file:
        YAML_1_2.dump(set_values(values, SMALL), file)
    patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    patch.chdir(folder)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def params(workspace: Path) -> Params:
    return load_params(workspace / "params.yaml")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check draws no pictures, which take longer than all else."""
    monkeypatch.setattr(conversion, "draw", lambda index, raw: Path("drawn.png"))


def test_the_check_tells_what_is_there_and_converts_nothing(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    check(params)
    text = capsys.readouterr().out
    assert "sources/simulator: simulator (drone.yaml, split all)" in text
    assert "3 images, pixels: 640 x 480 (3)" in text
    assert "3 labels, 0 of them of another size" in text
    assert re.search(r"ground \d+\.\d\d%, roof \d+\.\d\d%, tree ", text)
    assert text.count("labels are not looked for") == 1
    assert sorted(path.name for path in Path("data/check").iterdir()) == [
        "sources_simulator.png",
        "target_report.png",
        "target_validation.png",
    ]
    picture = cv2.imread("data/check/sources_simulator.png")
    assert picture is not None and picture.std() > 10
    assert not Path("data/converted").exists() and not Path("metrics").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_check_counts_all_problems(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = [
        Path("simulator/masks/all/site_1/000_mask.png"),
        Path("flights/photos/new/Tag Ä/1.jpg"),
    ]
    good = [path.read_bytes() for path in spoilt]
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(spoilt[0])
    spoilt[1].write_bytes(b"no photo")
    try:
        with pytest.raises(ValueError, match=r"^2 problems, see above$"):
            check(params)
    finally:
        for path, content in zip(spoilt, good, strict=True):
            path.write_bytes(content)
    text = capsys.readouterr().out
    assert "colour (1, 2, 3): allowed are the colours in drone.yaml" in text
    assert "photos/new/Tag Ä/1.jpg: not a readable PNG or JPEG" in text


@pytest.mark.usefixtures("undrawn")
def test_the_check_tells_the_sizes_that_are_seen_and_warns(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    check(params)
    text = capsys.readouterr().out
    resized = "seen at 160 x 120 (sources.simulator.resize), in crops of 96 x 64"
    assert resized in text and "warning" not in text
    assert text.count("  seen at 160 x 120 (images.target_size), in crops of 96 x 64\n") == 1
    assert text.count("  seen at 160 x 120 (images.target_size)\n") == 2
    source = params.sources["simulator"].model_copy(update={"resize": None})
    sizes = {"images.target_size": (1024, 512), "sources": {"simulator": source}}
    check(changed(params, sizes))
    text = capsys.readouterr().out
    assert "  seen as they are, in crops of 96 x 64\n" in text
    squeezed = "warning: images.target_size = [1024, 512] squeezes 3 images, such as one of 640 x"
    assert f"{squeezed} 480; [1024, 768] keeps its shape\n" in text
    assert "enlarges" not in text
    check(changed(params, {"images.target_size": (1280, 960)}))
    enlarged = "warning: images.target_size = [1280, 960] enlarges 1 images, such as one of 640 x"
    assert f"{enlarged} 480; null keeps them\n" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_the_check_sees_what_training_would_refuse(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    images = params.images.model_copy(update={"crop": (96, 128)})
    with pytest.raises(ValueError, match=r"^2 problems"):
        check(params.model_copy(update={"images": images}))
    assert capsys.readouterr().out.count("images.crop = [96, 128]: larger than") == 2
    with pytest.raises(ValueError, match=r"^1 problem,"):
        check(changed(params, {"model.encoder": "resnet19"}))
    assert "\nnetwork: model.encoder = 'resnet19': not an enc" in "\n" + capsys.readouterr().out


def test_a_known_game_in_other_classes(workspace: Path) -> None:
    layout = load_layout("gta_11.yaml")
    gta = LAYOUTS["gta"]
    assert (layout.images, layout.labels, layout.values) == (gta.images, gta.labels, "index")
    assert {*layout.ids} == {*gta.ids} - {22}
    assert len({*layout.ids.values()}) == 11 and 22 in layout.void


def test_from_a_folder_of_images_to_an_adapted_network(workspace: Path, params: Params) -> None:
    inventory.inventory(params, "simulator")
    for stage in (convert.main, pretrain.pretrain, adapt.adapt, evaluate.evaluate):
        stage(params)
    index = read_index("data/converted/sources/simulator")
    names = [*COLOURS]
    for seed, record in enumerate(sorted(index.records, key=lambda record: record.name[-1])):
        drawn = write_scene(workspace / "again", "x", seed)
        expected = np.full((HEIGHT, WIDTH), 255)
        for name, colour in [*COLOURS.items(), ("tree", FENCE)]:
            expected[(drawn == colour).all(axis=2)] = names.index(name)
        stored = cv2.imread(str(index.label_path(record)), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, expected)
    assert trained_size(Path("models/adapted.safetensors")) == (160, 120)
    network, space = load_network(Path("models/adapted.safetensors"))
    assert space.names == tuple(names) and space.things == (4,)
    assert network(torch.rand(1, 3, 64, 64)).shape[1] == 5
    scores = json.loads(Path("metrics/evaluate.json").read_text())["adapted"]
    assert list(scores["iou"]) == names
    assert scores["miou_built"] == pytest.approx(
        np.mean([scores["iou"][name] for name in ("roof", "car")]), abs=0.011
    )
    assert "tree" in Path("metrics/adapt/classes.csv").read_text()
    network = ssda.load("models/adapted.safetensors", device="cpu")
    predict.predict(network, [Path("flights/photos/new")], Path("predicted"))
    labels = cv2.imread("predicted/Tag Ä/0_ids.png", cv2.IMREAD_UNCHANGED)
    assert labels is not None and labels.shape == (HEIGHT, WIDTH) and labels.max() < 5
