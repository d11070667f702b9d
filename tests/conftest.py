import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import pytest
import torch
from torch import Tensor

from ssda.datasets.index import Index, Record
from ssda.labels import CITYSCAPES, LabelSpace
from ssda.params import Model, Params
from ssda.sections import read_yaml, set_values, validate

if TYPE_CHECKING:
    from ssda.networks.segmenter import Segmenter

ROOT = Path(__file__).resolve().parents[1]
SMALL_ENCODER = "test_efficientnet"
"""Of the default one's family, in a fraction of its time and bytes."""
SMALL_NETWORK = {"model.encoder": SMALL_ENCODER, "model.channels": 8}


@cache
def default_values() -> dict[str, Any]:
    return read_yaml(ROOT / "params.yaml")


def make_params(overrides: dict[str, Any] | None = None) -> Params:
    """The default parameters with overrides."""
    values = set_values(copy.deepcopy(default_values()), overrides or {})
    return validate(Params, values, "params.yaml")


def make_model(overrides: dict[str, Any] | None = None) -> Model:
    """The default network's parameters with overrides."""
    return make_params(overrides).model


def write_encoder(path: Path) -> None:
    """Weights of the small encoder, drawn at random."""
    import timm  # here, as processes that tests spawn read this file
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model(SMALL_ENCODER).state_dict(), path)


def varied_network(model: Model, num_classes: int, random_state: int = 0) -> "Segmenter":
    """An untrained network whose labels vary over an image: the small encoder's features are small.

    It leaves the generator of random numbers behind the draws of its weights.
    """
    from ssda.networks.segmenter import Segmenter  # here, as timm is behind it

    torch.manual_seed(random_state)
    network = Segmenter(model, num_classes)
    torch.nn.init.normal_(network.classifier.convolutions[0].weight, std=20.0)
    return network


def write_varied_network(
    path: Path,
    overrides: dict[str, Any] | None = None,
    random_state: int = 0,
    space: LabelSpace = CITYSCAPES,
) -> None:
    """The file of a small one with overrides."""
    from ssda.engine.checkpoints import save_network

    model = make_model(SMALL_NETWORK | (overrides or {}))
    save_network(path, varied_network(model, space.num_classes, random_state), model, space)


def unlabelled_index(folder: Path, images: Tensor) -> Index:
    """Images (N, 3, H, W) uint8 as PNGs in a folder, and the split that they make."""
    height, width = images.shape[-2:]
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i}.png"), image.flip(0).permute(1, 2, 0).numpy())
    names = [f"{i}" for i in range(len(images))]
    records = tuple(Record(name, f"{name}.png", 0, "", None, width, height, None) for name in names)
    return Index(folder, folder, CITYSCAPES, records)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small network's parameters, with weights of its encoder in a file."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    write_encoder(path)
    return SMALL_NETWORK | {"model.weights": str(path)}


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are empty files: drawing one takes longer than a step."""
    monkeypatch.setattr("pipeline.drawing.figures.save", lambda figure, path: path.touch())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two test processes share two cores; more threads would only wait for each other."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))
