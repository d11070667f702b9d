"""The whole pipeline on a few tiny scenes, stage by stage, as DVC runs it but without DVC."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from demo.scenes import write_cityscapes, write_gta
from pipeline import adapt, command, convert, evaluate, inventory, pretrain
from pipeline.training import loop
from ssda.engine.checkpoints import load_network, save_network
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Params, load_params
from ssda.sections import read_yaml, set_values
from tests.conftest import ROOT, SMALL_ENCODER, write_encoder

TINY = {
    "sources.game.root": "raw/game",
    "target.root": "raw/city",
    "target.report": "val",
    "images.crop": [64, 32],
    "sampling.min_pixels": 10,
    "model.channels": 8,
    "pretrain.iterations": 2,
    "pretrain.batch_size": 2,
    "pretrain.validate_every": 1,
    "adapt.iterations": 2,
    "adapt.batch_size": 2,
    "adapt.validate_every": 2,
    "evaluate.pictures": 1,
    "evaluate.subsets": [16, 13],
    "runtime.workers": 0,
    "runtime.log_every": 1,
    "runtime.picture_every": 0,
}
STAGES = (
    (convert, "main"),
    (pretrain, "pretrain"),
    (adapt, "adapt"),
    (evaluate, "evaluate"),
)


def write_params(folder: Path, overrides: dict[str, Any]) -> Params:
    """Write params.yaml, tiny, with overrides; beside it the encoder's weights, drawn at random."""
    weights = "encoder.safetensors"
    encoder = {"model.encoder": SMALL_ENCODER, "model.weights": weights}
    values = set_values(read_yaml(ROOT / "params.yaml"), TINY | encoder | overrides)
    if not (folder / weights).exists():
        write_encoder(folder / weights)
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    return load_params(folder / "params.yaml")


def run_all(params: Params) -> None:
    for source in params.sources:
        inventory.inventory(params, source)
    for module, name in STAGES:
        getattr(module, name)(params)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run; MLflow is switched to an address where nobody answers."""
    folder = tmp_path_factory.mktemp("workspace")
    write_gta(folder / "raw/game", 4, size=(36, 68), processes=1)
    write_cityscapes(folder / "raw/city", {"train": 4, "val": 2}, size=(32, 64), processes=1)
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    patch.chdir(folder)
    run_all(write_params(folder, {"runtime.picture_every": 2}))
    yield folder
    patch.undo()


def test_scores_are_in_per_cent_and_valid_json(workspace: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (workspace / "metrics/evaluate.json").read_text()
    scores = json.loads(text, parse_constant=refuse)
    for name in ("source_only", "reestimated", "student", "adapted"):
        entry = scores[name]
        known = [value for value in entry["iou"].values() if value is not None]
        assert entry["miou"] == pytest.approx(np.mean(known), abs=0.01)
        assert 0 <= entry["miou"] <= 100
        assert {"miou_16", "miou_13", "pixel_accuracy"} <= entry.keys()
    assert scores["adapted"]["iou"]["road"] is not None


def test_the_headline_is_of_the_first_subset_and_the_classes_are_a_table(workspace: Path) -> None:
    scores = json.loads((workspace / "metrics/evaluate.json").read_text())
    found = json.loads((workspace / "metrics/headline.json").read_text())
    before, after = (scores[name]["miou_16"] for name in ("source_only", "adapted"))
    assert (found["source_only"], found["mIoU"]) == (before, after)
    assert found["gain"] == pytest.approx(after - before, abs=0.006)
    assert found["pixel_accuracy"] == scores["adapted"]["pixel_accuracy"]
    validation = json.loads((workspace / "metrics/adapt.json").read_text())["adapt"]
    assert found["label_free_score"] == validation["label_free_score"]
    with (workspace / "metrics/iou.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        for network in ("source_only", "reestimated", "student", "adapted"):
            iou = scores[network]["iou"][name]
            assert row[network] == ("" if iou is None else str(iou))
    assert rows.keys() == scores["adapted"]["iou"].keys()


def test_adaptation_starts_from_the_pretrained_weights_and_moves(workspace: Path) -> None:
    pretrained, adapted, student = (
        load_network(workspace / f"models/{name}.safetensors")[0]
        for name in ("pretrained", "adapted", "student")
    )
    before = torch.cat([p.flatten() for p in pretrained.parameters()])
    after = torch.cat([p.flatten() for p in adapted.parameters()])
    last = torch.cat([p.flatten() for p in student.parameters()])
    assert 0 < (after - before).norm() < 0.5 * before.norm()
    assert not torch.equal(after, last)


def test_curves_and_pictures_are_there(workspace: Path) -> None:
    metrics = workspace / "metrics"
    head, first, second = (metrics / "adapt/losses.csv").read_text().splitlines()
    for name in ("source", "mix", "seed", "uncertainty", "trucrf", "feature_distance"):
        assert f"loss_{name}" in head
    assert first.startswith("1,") and second.startswith("2,")
    shares = (metrics / "adapt/classes.csv").read_text().splitlines()
    assert shares[0] == "step,class,seed_share,predicted_share"
    assert len(shares) == 1 + 2 * 19
    assert "validation_miou_student" in (metrics / "adapt/validation.csv").read_text()
    for path in ("pictures.png", "adapt/pictures/000001.png"):
        picture = cv2.imread(str(metrics / path))
        assert picture is not None and picture.std() > 10
    [street] = (metrics / "streets").iterdir()
    image, truth, labels = (
        cv2.imread(str(street / f"{kind}.png")) for kind in ("image", "truth", "adapted")
    )
    assert image is not None and truth is not None and labels is not None
    assert image.shape == truth.shape == labels.shape and image.std() > 10
    known = {tuple(colour) for colour in CITYSCAPES.palette()[..., ::-1].tolist()}
    for picture in (truth, labels):
        assert {tuple(colour) for colour in picture.reshape(-1, 3).tolist()} <= known
    for stage in ("convert", "pretrain", "adapt", "evaluate"):
        logged = json.loads((metrics / f"logged/{stage}.json").read_text())["metrics"]
        assert bool(logged) == (stage != "convert"), "what the sets hold is no score"
        short = {name for name in logged if not name.startswith((f"{stage}/", "eval/"))}
        found = {"mIoU", "mIoU/source_only", "mIoU/gain", "pixel_accuracy", "label_free_score"}
        assert short >= found if stage == "evaluate" else not short


def test_the_confusion_is_in_per_cent_of_the_truth(workspace: Path) -> None:
    with (workspace / "metrics/confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = json.loads((workspace / "metrics/evaluate.json").read_text())
    for network, key in (("source only", "source_only"), ("adapted", "adapted")):
        sums: dict[str, float] = {}
        hits: dict[str, float] = {}
        for row in rows:
            if row["network"] == network:
                truth, share = row["truth"], float(row["share"])
                sums[truth] = sums.get(truth, 0.0) + share
                if truth == row["prediction"]:
                    hits[truth] = share
        known = {name for name, iou in scores[key]["iou"].items() if iou is not None}
        assert sums.keys() == known and list(sums.values()) == pytest.approx(
            [100] * len(sums), abs=0.2
        )
        for name in known:  # the union is no smaller than the truth
            assert hits[name] >= scores[key]["iou"][name] - 0.01
    for name in ("confusion.png", "iou.png"):
        picture = cv2.imread(str(workspace / "metrics" / name))
        assert picture is not None and picture.std() > 10


@pytest.mark.usefixtures("no_figures")
def test_the_curve_ends_where_the_report_is(workspace: Path) -> None:
    """Both are of the validation images here, seen in windows and mirrored, over 16 classes."""
    before = json.loads((workspace / "metrics/evaluate.json").read_text())
    windows = {"extent": [32, 32], "step": [16, 16]}
    params = write_params(workspace, {"evaluate.windows": windows, "evaluate.flip": True})
    for module, name in STAGES[1:]:
        getattr(module, name)(params)
    scores = json.loads((workspace / "metrics/evaluate.json").read_text())
    ends = {
        stage: json.loads((workspace / f"metrics/{stage}.json").read_text())[stage]
        for stage in ("pretrain", "adapt")
    }
    for network, end in (
        ("source_only", ends["pretrain"]["validation_miou"]),
        ("adapted", ends["adapt"]["validation_miou"]),
        ("student", ends["adapt"]["validation_miou_student"]),
    ):
        assert end == pytest.approx(scores[network]["miou_16"], abs=0.006), network
    assert scores["adapted"]["miou_16"] != scores["adapted"]["miou"]
    assert scores["adapted"]["miou_16"] != before["adapted"]["miou_16"]  # seen otherwise


@pytest.mark.usefixtures("no_figures")
def test_the_labels_of_the_target_s_train_split_are_never_opened(workspace: Path) -> None:
    """With garbage in their place the whole run gives the same weights."""
    before = (workspace / "models/adapted.safetensors").read_bytes()
    for path in (workspace / "raw/city/gtFine/train").rglob("*.png"):
        path.write_bytes(b"not a label")
    run_all(load_params(workspace / "params.yaml"))
    assert (workspace / "models/adapted.safetensors").read_bytes() == before


@pytest.mark.parametrize("folder", ["game/images", "city/leftImg8bit/val"])
def test_changed_raw_data_is_told_before_training(workspace: Path, folder: str) -> None:
    path = next((workspace / "raw" / folder).rglob("*.png"))
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    try:
        with pytest.raises(ValueError, match=f"raw data changed since convert.*{path.name}"):
            pretrain.pretrain(load_params(workspace / "params.yaml"))
    finally:
        path.write_bytes(content)


def test_adaptation_starts_from_a_file_of_a_network(workspace: Path) -> None:
    params = write_params(workspace, {"adapt.start": "start.safetensors"})
    model = params.model.model_copy(update={"dropout": 0.5})
    start = Segmenter(model, CITYSCAPES.num_classes)
    save_network(Path("start.safetensors"), start, model, CITYSCAPES)
    adapt.adapt(params)
    adapted = load_network(workspace / "models/adapted.safetensors")[0]
    before, after = (
        torch.cat([p.flatten() for p in network.parameters()]) for network in (start, adapted)
    )
    assert 0 < (after - before).norm() < 0.5 * before.norm()
    assert adapted.dropout == params.model.dropout != 0.5


@pytest.mark.usefixtures("no_figures")
def test_without_pretraining_there_is_no_source_only_score(workspace: Path) -> None:
    params = write_params(workspace, {"pretrain.iterations": 0})
    for module, name in STAGES[1:]:
        getattr(module, name)(params)
    scores = json.loads((workspace / "metrics/evaluate.json").read_text())
    assert scores["source_only"] is None and scores["reestimated"] is None
    assert scores["adapted"]["miou"] is not None


def test_a_stage_says_what_runs_where_and_what_came_of_it(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it runs: its progress, and the curves so far."""
    overrides = {"adapt.iterations": 14, "adapt.validate_every": 0, "runtime.log_every": 4}
    params = write_params(workspace, overrides)
    curves: dict[str, list[str]] = {}

    def say(text: str) -> None:
        curves[text] = Path("metrics/adapt/losses.csv").read_text().split()

    with monkeypatch.context() as patched:
        patched.setattr(command, "say", say)
        patched.setattr(loop, "BETWEEN_LINES", 0.0)
        adapt.adapt(params)
    start, *middle, pace, end, following = curves
    assert start.startswith(
        "adapt: 14 steps of 2 source and 2 target images, out of 4 and 4; "
        f"{SMALL_ENCODER} with head daformer ("
    )
    assert start.endswith(" M parameters) on 1 thread of the CPU, TruCRF by its plain form")
    for step, line in zip((11, 12, 13), middle, strict=True):
        pattern = rf"adapt: step {step} of 14, \S+ s a step, about 00:\d\d left"
        assert re.fullmatch(pattern, line)
        logged = [int(row.partition(",")[0]) for row in curves[line][1:]]
        assert logged == [1, 5, 9, 13][: 4 if step == 13 else 3]
    assert re.fullmatch(
        r"adapt: \S+ s a step, \S+ images a second, \S+ % of it waiting for data, "
        r"validation took 0 % of the time, at most \S+ GiB of memory",
        pace,
    )
    score = json.loads((workspace / "metrics/adapt.json").read_text())["adapt"]["validation_miou"]
    assert f"adapt: validation mIoU {score:.1f}," in end and "models/adapted.safetensors" in end
    assert following == "next: python -m pipeline.evaluate"
    capsys.readouterr()
    monkeypatch.setenv("DVC_STAGE", "evaluate")  # DVC goes on by itself
    convert.main(params)
    start, end = capsys.readouterr().out.splitlines()
    assert start == "convert: labels of raw/game (gta), raw/city (cityscapes) to data/converted"
    assert end.startswith("convert: game 4, train 4, validation 2, report 2 images")


def test_the_last_point_of_the_curve_is_the_result(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training stage validates its end once."""
    from ssda.engine import evaluation

    calls: list[object] = []
    score = evaluation.score

    def count(*arguments: Any, **options: Any) -> list[torch.Tensor]:
        calls.append(arguments[0])
        return score(*arguments, **options)

    monkeypatch.setattr(evaluation, "score", count)
    pretrain.pretrain(write_params(workspace, {}))
    assert len(calls) == 2  # validate_every: 1, two steps
    last = (workspace / "metrics/pretrain/validation.csv").read_text().splitlines()[-1]
    metrics = json.loads((workspace / "metrics/pretrain.json").read_text())
    assert f"2,{metrics['pretrain']['validation_miou']}" == last
