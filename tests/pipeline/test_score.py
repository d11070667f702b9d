"""Any network on any labelled split: the table, the PNGs for the server, what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from demo.scenes import write_cityscapes
from pipeline.score import PROTOCOLS, View, main, view_of
from ssda.engine.checkpoints import load_network
from ssda.labels import CITYSCAPES, CITYSCAPES_IDS
from ssda.networks.segmenter import Segmenter
from ssda.params import Windows
from tests.conftest import ROOT, SMALL_NETWORK, make_model, write_varied_network

ONE, OTHER = Path("models/one.safetensors"), Path("models/other.safetensors")
CITY = ("--root", "city", "--split", "val")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    write_cityscapes(folder / "city", {"val": 3}, size=(64, 128), processes=1)
    write_varied_network(folder / ONE)
    write_varied_network(folder / OTHER, random_state=1)
    torch.save({"state_dict": {}}, folder / "released.pth")
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return folder


@pytest.fixture(autouse=True)
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["score", "--device", "cpu", *map(str, arguments)])
    main()


def pairs() -> list[tuple[Path, np.ndarray]]:
    """Images, and their labels as train ids by a table written out here."""
    table = np.full(256, 255, np.uint8)
    for raw, name in CITYSCAPES_IDS.items():
        table[raw] = CITYSCAPES.names.index(name)
    found: list[tuple[Path, np.ndarray]] = []
    for path in sorted(Path("city").rglob("*_leftImg8bit.png")):
        label = (
            str(path).replace("leftImg8bit/", "gtFine/").replace("leftImg8bit", "gtFine_labelIds")
        )
        ids = cv2.imread(label, cv2.IMREAD_UNCHANGED)
        assert ids is not None
        found.append((path, table[ids]))
    return found


def mean_iou(found: list[np.ndarray], classes: list[int]) -> float:
    """Written out class by class."""
    truth = np.concatenate([label.ravel() for _, label in pairs()])
    said = np.concatenate([ids.ravel() for ids in found])
    counted = truth != 255
    values = [
        np.sum(counted & (truth == c) & (said == c))
        / np.sum(counted & ((truth == c) | (said == c)))
        for c in classes
        if np.any(truth == c)
    ]
    return 100.0 * float(np.mean(values))


def label(network: Segmenter, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    shape = image.shape[:2]
    if size is not None:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).unsqueeze(0) / 255
    with torch.inference_mode():
        logits = network.predict(pixels).logits
    return functional.interpolate(logits, shape, mode="bilinear").argmax(1)[0].numpy()


@pytest.mark.parametrize("size", [None, (96, 64)])
def test_files_side_by_side_are_counted_as_written_out_here(
    size: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resize = ["--resize", *size] if size else []
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    run(monkeypatch, "--model", ONE, OTHER, *CITY, *resize, "--json", "out.json")
    told = json.loads(Path("out.json").read_text())["networks"]
    assert [*told] == [str(ONE), str(OTHER)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["per", "cent", "one", "other"]
    for column, path in enumerate((ONE, OTHER), 1):
        network = load_network(path)[0]
        found = [label(network, image, size) for image, _ in pairs()]
        for title, key in (("19", "miou"), ("16", "miou_16"), ("13", "miou_13")):
            classes = [*CITYSCAPES.subsets.get(title, range(19))]
            # A pixel may be a tie: batches sum in another order.
            assert told[str(path)][key] == pytest.approx(mean_iou(found, classes), abs=0.05)
            line = next(line for line in lines if line.startswith(f"mIoU ({title} classes)"))
            assert float(line.split()[2 + column]) == told[str(path)][key]
    assert len({*(value["miou"] for value in told.values())}) == 2
    Path("out.json").unlink()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {*Path().rglob("*")} == {*before}


def test_the_server_s_pngs_score_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    run(
        monkeypatch,
        *("--model", ONE, OTHER, *CITY, "--predictions", "server", "--json", "told.json"),
        *("--windows", 64, 32, "--flip"),
    )
    told = json.loads(Path("told.json").read_text())
    assert told["flip"] and told["networks"][str(ONE)]["windows"]["step"] == [32, 32]
    for path in (ONE, OTHER):
        folder = Path("server") / path.stem
        assert {file.name for file in folder.iterdir()} == {image.name for image, _ in pairs()}
        found: list[np.ndarray] = []
        for image, _ in pairs():
            ids = cv2.imread(str(folder / image.name), cv2.IMREAD_UNCHANGED)
            assert ids is not None and ids.dtype == np.uint8 and ids.ndim == 2
            names = [CITYSCAPES_IDS[raw] for raw in ids.ravel().tolist()]
            found.append(np.array([CITYSCAPES.names.index(name) for name in names]))
        assert told["networks"][str(path)]["miou"] == pytest.approx(
            mean_iou(found, [*range(19)]), abs=0.006
        )


def test_without_labels_there_are_predictions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(pairs()[0][0].read_bytes())
    out = tmp_path / "server"
    where = ("--root", tmp_path, "--split", "test", "--predictions", out)
    run(monkeypatch, "--model", ONE, "--unlabelled", *where)
    assert [file.name for file in out.iterdir()] == [image.name]
    assert "mIoU" not in capsys.readouterr().out


def test_protocols_are_those_of_the_authors() -> None:
    transformer = Segmenter(make_model(SMALL_NETWORK), 19)
    resnet = Segmenter(make_model({"model.encoder": "resnet10t", "model.head": "deeplabv2"}), 19)
    slid = View(windows=Windows(extent=(1024, 1024), step=(512, 512)))
    expected = {
        "daformer": (View(resize=(1024, 512)), View(resize=(1024, 512))),
        "hrda": (slid, View()),
        "mic": (slid, View()),
        "ssda": (View(), View()),
    }
    assert {
        name: (view_of(name, transformer), view_of(name, resnet)) for name in PROTOCOLS
    } == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "no.safetensors", *CITY), r"^error: no\.safetensors: no such file"),
        (("--model", ONE, "params.yaml", *CITY), r"^error: params\.yaml: not a safetensors file"),
        (
            ("--model", "released.pth", *CITY),
            r"^error: released\.pth: not a safetensors file .*: python -m pipeline.import_network",
        ),
        (
            ("--model", ONE, "--root", "nowhere"),
            r"^error: nowhere/leftImg8bit/test: no such folder",
        ),
        (("--model", ONE, *CITY, "--layout", "x"), r"^error: layout 'x': allowed are"),
        (("--model", ONE, "copy/one.safetensors", *CITY), "^error: --model: two files of one name"),
        (
            ("--model", ONE, *CITY, "--windows", 32, 64),
            r"^error: --windows: .*step \[64, 64\] must be",
        ),
        (("--model", ONE, *CITY, "--protocol", "mic", "--resize", 64, 32), "^2$"),
        (("--model", ONE, *CITY, "--unlabelled"), "^2$"),
        (("--model", ONE, *CITY, "--resize", 0, 32), "^2$"),
        (("--model", ONE, *CITY, "--json", "models"), "^error: --json models: a folder"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    arguments: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=message) as end:
        run(monkeypatch, "--json", "none.json", *arguments)
    assert "\n" not in str(end.value) and not Path("none.json").exists()


def test_other_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(
        CITYSCAPES, names=("a", "b"), colours=((0, 0, 0), (1, 1, 1)), things=(), subsets={}
    )
    path = tmp_path / "few.safetensors"
    write_varied_network(path, space=few)
    with pytest.raises(SystemExit, match=r"few\.safetensors: has other classes than models/one"):
        run(monkeypatch, "--model", ONE, path, *CITY)
    with pytest.raises(SystemExit, match="7 is 'road', which is no class of labels of the network"):
        run(monkeypatch, "--model", path, *CITY)
    with pytest.raises(SystemExit, match="--predictions: class 'a' has no label id in Cityscapes"):
        run(monkeypatch, "--model", path, *CITY, "--predictions", tmp_path / "out")
    assert not (tmp_path / "out").exists()
