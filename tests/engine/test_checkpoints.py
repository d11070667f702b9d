import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssda.engine.checkpoints import load_network, save_network, trained_size
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from tests.conftest import SMALL_NETWORK, make_model


def test_a_network_comes_back_with_its_classes(tmp_path: Path) -> None:
    two = {"model.detail": [32, 32], "images.crop": [64, 64]}
    model = make_model({"model.channels": 8, "model.weights": "/secret/path"} | two)
    network = Segmenter(model, 19).eval()
    path = tmp_path / "models/net.safetensors"
    save_network(path, network, model, CITYSCAPES)
    assert b"secret" not in path.read_bytes()
    loaded, space = load_network(path)
    assert space == CITYSCAPES
    assert not loaded.training
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images), network(images))
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]
    assert trained_size(path) is None
    save_network(path, network, model, CITYSCAPES, (1024, 512))
    assert trained_size(path) == (1024, 512)


def test_files_that_are_no_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        load_network(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_network(path)
    for metadata in (None, {"ssda": "{}"}):
        save_file({"weight": torch.zeros(1)}, path, metadata)
        with pytest.raises(ValueError, match="does not describe itself"):
            load_network(path)


def test_weights_that_do_not_fit_their_description_are_named(tmp_path: Path) -> None:
    network = Segmenter(make_model({"model.channels": 16}), 19)
    path = tmp_path / "net.safetensors"
    save_network(path, network, make_model(SMALL_NETWORK), CITYSCAPES)
    with pytest.raises(ValueError, match="weights do not fit"):
        load_network(path)


def test_a_file_knows_its_pyramid_and_an_older_one_has_that_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    vit = {"model.encoder": "vit_tiny_patch16_224", "model.channels": 8}
    blocks, last = make_model(vit), make_model(vit | {"model.pyramid": "last"})
    network, images = Segmenter(last, 19).eval(), torch.rand(1, 3, 64, 64)
    save_network(path, network, last, CITYSCAPES)
    assert torch.equal(load_network(path)[0](images), network(images))
    with pytest.raises(ValueError, match=r"is vit_tiny.* on the last map .*, model says vit_tiny"):
        load_network(path, blocks)
    save_network(path, network, blocks, CITYSCAPES)
    with safe_open(str(path), "pt") as file:
        description = json.loads(file.metadata()["ssda"])
    del description["model"]["pyramid"]
    save_file(load_file(path), path, {"ssda": json.dumps(description)})
    older, _ = load_network(path, blocks)
    assert not torch.allclose(older(images), network(images))


def test_the_normalisation_and_the_architecture_of_a_source_are_kept(tmp_path: Path) -> None:
    said = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    config = {"architecture": "resnet10t", "pretrained_cfg": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = make_model({"model.encoder": f"local-dir:{tmp_path}", "model.channels": 8})
    network = Segmenter(model, 19).eval()
    save_network(tmp_path / "net.safetensors", network, model, CITYSCAPES)
    (tmp_path / "config.json").unlink()
    loaded, _ = load_network(tmp_path / "net.safetensors")
    assert loaded.encoder.name == "resnet10t"
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images), network(images))
