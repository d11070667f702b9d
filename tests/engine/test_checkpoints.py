from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssda.engine.checkpoints import load_network, save_network
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from tests.conftest import make_params


def test_a_network_comes_back_with_its_classes(tmp_path: Path) -> None:
    params = make_params({"model.channels": 8})
    network = Segmenter(params.model.encoder, 8, params.model.dropout, 19).eval()
    path = tmp_path / "models/net.safetensors"
    save_network(path, network, params.model, CITYSCAPES)
    loaded, space = load_network(path)
    assert space == CITYSCAPES
    assert not loaded.training
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(images), network(images))
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_files_that_are_no_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        load_network(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_network(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not describe itself"):
        load_network(path)


def test_weights_that_do_not_fit_their_description_are_named(tmp_path: Path) -> None:
    params = make_params({"model.channels": 8})
    network = Segmenter(params.model.encoder, 16, 0.0, 19)
    path = tmp_path / "net.safetensors"
    save_network(path, network, params.model, CITYSCAPES)
    with pytest.raises(ValueError, match="weights do not fit"):
        load_network(path)
