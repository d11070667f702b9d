"""Every preset takes two joint steps on small raw data of the right layout."""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

from demo.scenes import write_cityscapes, write_gta, write_synthia
from pipeline import adapt, convert, evaluate, inventory, pretrain
from pipeline.overlays import FOLDER, load_preset
from ssda.datasets.conversion import convert_split
from ssda.datasets.index import Index
from ssda.datasets.layouts import load_layout
from ssda.engine.adapting import adapt_steps, start_networks
from ssda.engine.pretraining import imagenet_network
from ssda.labels import CITYSCAPES
from ssda.networks.encoders import MIT, Encoder
from ssda.params import Params, load_params
from ssda.sections import read_yaml, set_values, validate
from tests.conftest import ROOT, SMALL_ENCODER

SIZE = (72, 136)
OTHERS = {"demo", "camvid", "own"}
"""Presets whose source is the drawn game, or what a user has."""
PRESETS = sorted({path.stem for path in (ROOT / FOLDER).glob("*.yaml")} - OTHERS)
SMALL = {
    "tf_efficientnet_lite0": SMALL_ENCODER,
    "resnet101c": "test_resnet",
    "mit_b5": "mit_b0",
    "vit_large_patch16_dinov3.lvd1689m": "vit_small_patch16_dinov3.lvd1689m",
}
"""A small encoder of the same family for each that the presets name."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_gta(folder / "gta", 3, size=SIZE, processes=1)
    write_synthia(folder / "synthia", 3, size=SIZE, processes=1)
    write_cityscapes(folder / "cityscapes", {"train": 3, "val": 2}, size=SIZE, processes=1)
    return folder


@pytest.fixture(scope="module")
def converted(raw: Path) -> dict[str, Index]:
    return {
        name: convert_split(
            load_layout(name),
            raw / name,
            "train",
            raw / "converted" / name,
            space=CITYSCAPES,
            with_labels=name != "cityscapes",
        )
        for name in ("gta", "synthia", "cityscapes")
    }


@cache
def preset(name: str) -> Params:
    with contextlib.chdir(ROOT):
        return load_preset(name)


def reduced(name: str, raw: Path, overrides: dict[str, Any]) -> Params:
    """A preset at crops of 64 px, with weights of its encoder from a file."""
    values = preset(name).model_dump(mode="json", by_alias=True)
    for source, section in values["sources"].items():
        section |= {"root": str(raw / source), "resize": None}
    tiny = {
        "target.root": str(raw / "cityscapes"),
        "images.target_size": None,
        "images.crop": [64, 64],
        "sampling.min_pixels": 10,
        "adapt.iterations": 2,
        "adapt.batch_size": 2,
        "adapt.margins": {"top": 2, "bottom": 9, "left": 2, "right": 2},
        "adapt.pseudo_labels.confidence_threshold": 0.0,
        "runtime.workers": 0,
    }
    if values["model"]["detail"] is not None:
        tiny["model.detail"] = [32, 32]
    params = validate(Params, set_values(values, tiny | overrides), name)
    if params.model.encoder == "tf_efficientnet_lite0":
        return params
    path = raw / f"{params.model.encoder}.safetensors"
    if not path.exists():
        state = random_state(params)
        save_file({key: v.contiguous().clone() for key, v in state.items()}, path)
    return validate(Params, set_values(values, {"model.weights": str(path)}), name)


def random_state(params: Params) -> dict[str, torch.Tensor]:
    """What a file of the encoder's pretrained weights holds; no branch starts switched off."""
    if MIT.fullmatch(params.model.encoder):
        return Encoder(params.model).network.network.state_dict()
    state = timm.create_model(params.model.encoder, pretrained=False).state_dict()
    off = {key for key, v in state.items() if key.endswith(".weight") and not v.any()}
    return {key: torch.ones_like(v) if key in off else v for key, v in state.items()}


def two_steps(params: Params, converted: dict[str, Index]) -> None:
    """Every loss of the preset is there, finite and alive; the student learns."""
    sources = [converted[name] for name in params.sources]
    student = imagenet_network(params, CITYSCAPES.num_classes)
    networks = start_networks(student, converted["cityscapes"], params)
    before = student.encoder.network.state_dict()
    before = {key: value.clone() for key, value in before.items() if value.dim() == 4}
    records = list(adapt_steps(networks, sources, converted["cityscapes"], params, CITYSCAPES))
    assert len(records) == 2
    losses = params.adapt.losses
    parts = {"seed", "uncertainty", "trucrf", "feature_distance", "mix", "masked"}
    expected = {"source"} | {name for name in parts if getattr(losses, name) > 0}
    if "feature_distance" in expected and params.adapt.feature_distance.cells == "all":
        expected.add("target_feature_distance")
    for record in records:
        scalars = record.scalars()
        names = {key.removeprefix("loss_") for key in scalars if key.startswith("loss_")}
        assert names == expected
        assert all(torch.isfinite(torch.tensor(value)) for value in scalars.values())
        assert scalars["uncertainty"] > 0 and 0 < scalars["seeds"] < 1
        for name in expected - {"feature_distance"}:
            assert scalars[f"loss_{name}"] > 0, name
    after = student.encoder.network.state_dict()
    assert all(not torch.equal(value, after[key]) for key, value in before.items())
    assert (networks.student.detail is not None) == (params.model.detail is not None)


@pytest.mark.parametrize("name", PRESETS)
def test_two_joint_steps(name: str, raw: Path, converted: dict[str, Index]) -> None:
    encoder = SMALL[preset(name).model.encoder]
    overrides = {"model.encoder": encoder, "model.channels": 16}
    two_steps(reduced(name, raw, overrides), converted)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["gta_resnet101", "gta_mit_b5", "gta_dinov3_l"])
def test_two_joint_steps_of_the_real_encoder(
    name: str, raw: Path, converted: dict[str, Index]
) -> None:
    two_steps(reduced(name, raw, {}), converted)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


SCORED = {
    "target.report": "val",
    "adapt.validate_every": 2,
    "evaluate.windows": {"extent": [64, 64], "step": [32, 32]},
    "evaluate.flip": True,
    "evaluate.pictures": 1,
}


def scores_of(params: Params) -> dict[str, Any]:
    """What the stages give, from raw data to scores."""
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(params.model_dump(mode="json", by_alias=True), file)
    params = load_params()
    inventory.inventory(params, "gta")
    for module, stage in (
        (convert, "main"),
        (pretrain, "pretrain"),
        (adapt, "adapt"),
        (evaluate, "evaluate"),
    ):
        getattr(module, stage)(params)
    return read_yaml(Path("metrics/evaluate.json"))


def test_the_paper_s_preset_from_raw_data_to_scores(workspace: Path, raw: Path) -> None:
    scores = scores_of(reduced("gta_resnet101", raw, SCORED | {"model.encoder": "test_resnet"}))
    assert scores["source_only"] is None
    assert scores["images"] == 2
    assert 0 <= scores["adapted"]["miou"] <= 100
    assert (workspace / "metrics/pictures.png").exists()


@pytest.mark.usefixtures("no_figures")
def test_no_step_of_adaptation_is_new_statistics_alone(workspace: Path, raw: Path) -> None:
    steps = {"adapt.iterations": 0, "pretrain.iterations": 1, "model.channels": 16}
    scores = scores_of(reduced("gta_small", raw, SCORED | steps))
    assert scores["source_only"] is not None and scores["source_only"] != scores["adapted"]
    assert scores["adapted"] == scores["student"] == scores["reestimated"]
    assert (workspace / "metrics/adapt").is_dir()
