"""The network as ONNX: what onnxruntime says of images is what the network says."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional

from pipeline import export as command_line
from pipeline.export import export
from ssda.engine.checkpoints import load_network
from ssda.labels import CITYSCAPES
from tests.conftest import write_varied_network

MODEL, OUT = Path("model.safetensors"), Path("out/model.onnx")


def write_model(**overrides: object) -> None:
    write_varied_network(MODEL, {k.replace("__", "."): v for k, v in overrides.items()})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compare(count: int, height: int, width: int) -> None:
    session = onnxruntime.InferenceSession(OUT, providers=["CPUExecutionProvider"])
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(9))
    (logits,) = session.run(["logits"], {"image": images.numpy()})
    network = load_network(MODEL)[0]
    with torch.inference_mode():
        wanted = functional.interpolate(network(images), (height, width), mode="bilinear").numpy()
    assert logits.shape == (count, 19, height, width) and np.ptp(wanted) > 0.1
    np.testing.assert_allclose(logits, wanted, atol=1e-3 * np.ptp(wanted))


def test_any_number_of_images_of_any_size(capsys: pytest.CaptureFixture[str]) -> None:
    write_model()
    export(MODEL, OUT, None)
    compare(1, 33, 200)
    compare(4, 128, 64)
    classes = onnxruntime.InferenceSession(OUT).get_modelmeta().custom_metadata_map["classes"]
    assert list(json.loads(classes)["classes"]) == list(CITYSCAPES.names)
    said = capsys.readouterr().out
    assert "1 images of 160 x 96: off by" in said and "3 images of 130 x 45: off by" in said


def test_a_mixed_transformer_takes_any_size() -> None:
    write_model(model__encoder="mit_b0")
    export(MODEL, OUT, None)
    compare(2, 43, 70)


@pytest.mark.soak
def test_a_pyramid_of_the_last_map_takes_any_size() -> None:
    write_model(model__encoder="vit_small_patch16_dinov3", model__pyramid="last")
    export(MODEL, OUT, None)
    compare(1, 43, 70)


def test_two_resolutions_take_one_size() -> None:
    write_model(model__encoder="resnet10t", model__detail=[64, 64], images__crop=[128, 128])
    with pytest.raises(ValueError, match=r"two resolutions, which takes --size"):
        export(MODEL, OUT, None)
    export(MODEL, OUT, (100, 50))
    compare(1, 50, 100)


def test_what_differs_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    monkeypatch.setattr(command_line, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match=r"other logits for 1 images of 160 x 96, off by .* try"):
        export(MODEL, OUT, None)
    assert list(Path("out").iterdir()) == []


def test_what_cannot_be_exported_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    write_model(model__encoder="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"^model.safetensors: cannot be exported: Exporting the"):
        export(MODEL, OUT, (64, 64))
    assert capfd.readouterr() == ("", "")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime is missing: pip install '\.\[onnx\]'"):
        export(MODEL, OUT, None)
