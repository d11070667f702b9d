import re
from pathlib import Path
from typing import Any

import pytest

from ssda.params import Params, load_params
from ssda.sections import read_yaml, validate
from tests.conftest import ROOT, make_params


def write(tmp_path: Path, old: str, new: str) -> Path:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("adapt.trucrf.radius", -1, "greater than or equal to 1"),
        ("adapt.trucrf.radius", 1.5, "integer"),
        ("adapt.trucrf.sigma_rgb", 0, "greater than or equal to 0.001"),
        ("adapt.pseudo_labels.confidence_threshold", 1.5, "less than or equal to 1"),
        ("adapt.uncertainty.passes", 1, "greater than or equal to 2"),
        ("adapt.uncertainty.statistic", "variance", "'mutual_information', 'predictive_entropy'"),
        ("adapt.seeds.max_uncertainty", -0.1, "greater than or equal to 0"),
        ("adapt.losses.mix", float("nan"), "finite"),
        ("adapt.batch_size", "four", "integer"),
        ("adapt.teacher_momentum", 1.0, "less than 1"),
        ("adapt.augmentation.blur_sigma", [2.0, 1.0], r"\[smallest, largest\]"),
        ("pretrain.iterations", -5, "greater than or equal to 0"),
        ("runtime.device", "tpu", "'auto', 'cuda' or 'cpu'"),
        ("images.crop", [256], "1"),
        ("model.dropout", 1.0, "less than 1"),
        ("random_state", -1, "greater than or equal to 0"),
        ("random_state", 2**128, f"less than {2**63}"),
        (
            "adapt.augmentation.blur_sigma",
            [0.1, 42.4],
            r"at most 42 with images.crop = \[256, 128\]",
        ),
        ("adapt.batch_size", 2**63, "less than or equal to 1024"),
        ("pretrain.iterations", 2**63, "less than or equal to 10000000"),
        ("adapt.trucrf.radius", 2**63, "less than or equal to 64"),
        ("model.channels", 2**63, "less than or equal to 2048"),
        ("adapt.uncertainty.passes", 10**5, "less than or equal to 256"),
        ("evaluate.pictures", 1000, "less than or equal to 64"),
        ("runtime.workers", 10**5, "less than or equal to 256"),
        ("adapt.optimiser.learning_rate", 1e308, "less than or equal to 10"),
        ("adapt.optimiser.learning_rate", 5e-324, "greater than or equal to 0.000000000001"),
        ("adapt.optimiser.head_factor", 1e308, "less than or equal to 10000"),
        ("adapt.trucrf.sigma_xy", 5e-324, "greater than or equal to 0.001"),
        ("adapt.trucrf.sigma_rgb", 1e308, "less than or equal to 10000"),
        ("adapt.losses.mix", 1e308, "less than or equal to 10000"),
        ("adapt.augmentation.blur_sigma", [1, 10**5], "less than or equal to 100"),
        ("adapt.augmentation.blur_sigma", [5e-324, 1], "greater than or equal to 0.01"),
        ("images.target_size", [10**5, 10**5], "less than or equal to 16384"),
        ("sources.game.resize", [10**5, 10**5], "less than or equal to 16384"),
        ("sampling.rare_class_temperature", 5e-324, "greater than or equal to 0.0001"),
        ("model.encoder", "", "string should match"),
        ("target.root", "a\0b", "string should match"),
        ("runtime.experiment", "a\nb", "string should match"),
        ("runtime.register", "mine/ours", "string should match"),
        ("labels", "x" * 10**6, "at most 1000 characters"),
        ("target.train", {"a" * 10**6: 1}, "valid string"),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(
    key: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ValueError) as caught:
        make_params({key: value})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"params.yaml: {key}")
    assert re.search(allowed, message), message
    assert len(message) < 500
    if not isinstance(value, list) and len(repr(value)) < 100:
        assert repr(value) in message


def test_passes_that_cannot_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^params.yaml: model.dropout = 0.0: must be above 0"):
        make_params({"model.dropout": 0.0})
    alive = {"adapt.losses.uncertainty": 0.0, "adapt.uncertainty.statistic": "confidence"}
    assert make_params({"model.dropout": 0.0} | alive).model.dropout == 0.0


def test_the_detail_is_half_of_the_crop() -> None:
    with pytest.raises(ValueError, match=r"model.detail = \[64, 64\]: must be half .* \[128, 64\]"):
        make_params({"model.detail": [64, 64]})
    with pytest.raises(ValueError, match=r"images.crop = \[96, 96\]: .* multiples of 64"):
        make_params({"model.detail": [48, 48], "images.crop": [96, 96]})
    assert make_params({"model.detail": "half"}).model.detail == (128, 64)
    with pytest.raises(ValueError, match=r"model.detail = 'quarter': input should be"):
        make_params({"model.detail": "quarter"})
    with pytest.raises(ValueError, match=r"members = both: must be dropout with one resolution"):
        make_params({"adapt.uncertainty.members": "both"})


def test_shares_at_the_start_need_a_network_that_knows_classes() -> None:
    untrained = {"adapt.seeds.anchor": "start", "pretrain.iterations": 0}
    message = r"adapt\.seeds\.anchor = start: must be source where adaptation starts from a network"
    with pytest.raises(ValueError, match=message):
        make_params(untrained)
    make_params(untrained | {"adapt.start": "models/hrda.safetensors"})
    make_params(untrained | {"adapt.seeds.correction": 0.0})
    make_params(untrained | {"pretrain.iterations": 1})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"images.target_size": [200, 128]},
            r"images.crop = \[256, 128\]: larger than images.target_size = \[200, 128\]",
        ),
        (
            {"sources.game.resize": [256, 100]},
            r"images.crop = \[256, 128\]: larger than sources.game.resize = \[256, 100\]",
        ),
        (
            {"sampling.min_pixels": 65536},
            r"sampling.min_pixels = 65536: times min_crop_ratio .* less than the 32768 pixels",
        ),
        (
            {"adapt.seeds.min_pixels": 131072},
            r"adapt.seeds.min_pixels = 131072: .* the 131072 pixels of a batch",
        ),
    ],
)
def test_what_no_crop_can_hold_is_told(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_params(overrides)


def test_keys_that_no_line_could_hold_are_cut(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such key") as caught:
        load_params(
            write(tmp_path, "random_state: 0", f'"{"a" * 900}\\n{"b" * 90}": 0\nrandom_state: 0')
        )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_windows_leave_no_gap() -> None:
    with pytest.raises(ValueError, match=r"step \[64, 64\] must be no larger than extent"):
        make_params({"evaluate.windows": {"extent": [64, 32], "step": [64, 64]}})


def test_a_file_with_the_weight_of_the_crf_below_trucrf_is_told_where_it_lies() -> None:
    values = read_yaml(ROOT / "params.yaml")
    values["adapt"]["trucrf"]["weight"] = values["adapt"]["losses"].pop("trucrf")
    with pytest.raises(ValueError, match=r"^params.yaml: adapt.losses.trucrf: missing"):
        validate(Params, values, "params.yaml")


def test_an_unknown_and_a_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params.yaml: adapt.trucrf.radios = 3: no such key"):
        load_params(write(tmp_path, "    radius: 5 ", "    radius: 5\n    radios: 3 "))
    with pytest.raises(ValueError, match=r"adapt.trucrf.radius: missing"):
        load_params(write(tmp_path, "    radius: 5 ", "    # radius: 5 "))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("random_state: 0", "random_state: 0\nrandom_state: 1", "line 4.*duplicate key"),
        ("random_state: 0", "random_state: [0", "not valid YAML"),
        ("random_state: 0", "random_state: &a [*a", r"line 3 alias \*a: write the value out"),
    ],
)
def test_broken_yaml_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_params(write(tmp_path, old, new))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.yaml: No such file"):
        load_params(tmp_path / "none.yaml")


def test_numbers_such_as_6e_05_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "learning_rate: 4.0e-4", "learning_rate: 6e-05")
    assert load_params(path).pretrain.optimiser.learning_rate == 6e-5


def test_features_of_all_cells_are_compared_where_labels_name_no_things(tmp_path: Path) -> None:
    labels = tmp_path / "labels.yaml"
    labels.write_text("classes:\n  road: [1, 1, 1]\n  sky: [2, 2, 2]\n")
    own = {"labels": str(labels), "evaluate.subsets": []}
    with pytest.raises(ValueError, match="name no things, or feature_distance"):
        make_params(own)
    assert make_params(own | {"adapt.feature_distance.cells": "all"}).labels == str(labels)
