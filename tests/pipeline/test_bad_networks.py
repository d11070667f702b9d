"""Bad weights, models and images to predict, a row each: one line that says what is wrong."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.command import guard
from pipeline.predict import Settings, predict
from ssda.engine.checkpoints import load_network, save_network
from ssda.engine.pretraining import imagenet_network
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from tests.conftest import make_params

MODEL, WEIGHTS = Path("model.safetensors"), Path("weights.safetensors")


class Harm:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("harmed"),)  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return imagenet_network(make_params({"model.channels": 8}), 19)


@pytest.fixture
def workspace(network: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, an encoder's weights and an image, all good; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    save_network(MODEL, network, make_params({"model.channels": 8}).model, CITYSCAPES)
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), WEIGHTS)
    write_image("own/a.png")
    return tmp_path


def write_image(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)


def change(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a file, not its description."""
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, metadata)


def describe(**values: object) -> None:
    """Change what the model says of itself."""
    with safe_open(str(MODEL), "pt") as file:
        description = json.loads(file.metadata()["ssda"])
    description["model"] |= values
    save_file(load_file(MODEL), MODEL, {"ssda": json.dumps(description)})


def spoil_first(state: dict[str, torch.Tensor], value: float) -> None:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].view(-1)[0] = value


def reshape_first(state: dict[str, torch.Tensor]) -> None:
    name = next(iter(state))
    state[name] = torch.zeros(1, 2, 3, 4)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def load_weights(path: Path = WEIGHTS) -> Params:
    params = make_params({"model.channels": 8, "model.weights": str(path)})
    imagenet_network(params, 19)
    return params


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Harm()))


def run_predict() -> None:
    predict(MODEL, [Path("own")], Path("out"), Settings(device="cpu"))


ROWS: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
    # the model of adapt, evaluate and predict
    "no model": (MODEL.unlink, run_predict, r"model\.safetensors: no such file"),
    "pickled model": (
        lambda: pickled(MODEL),
        run_predict,
        r"model\.safetensors: not a safetensors file",
    ),
    "truncated model": (
        lambda: truncate(MODEL),
        run_predict,
        r"model\.safetensors: not a safetensors file",
    ),
    "model with NaN": (
        lambda: change(MODEL, lambda state: spoil_first(state, float("nan"))),
        run_predict,
        r"model\.safetensors: \S+ holds numbers that are not finite",
    ),
    "model with another shape": (
        lambda: change(MODEL, reshape_first),
        run_predict,
        r"model\.safetensors: weights do not fit: .*shape",
    ),
    "model without a tensor": (
        lambda: change(MODEL, lambda state: state.pop("encoder.network.conv_stem.weight")),
        run_predict,
        r"model\.safetensors: weights do not fit: Missing key",
    ),
    "model of another architecture": (
        lambda: describe(encoder="resnet18"),
        run_predict,
        r"model\.safetensors: weights do not fit",
    ),
    "model of an unknown encoder": (
        lambda: describe(encoder="resnet19"),
        run_predict,
        r"model\.encoder = 'resnet19'",
    ),
    "model with a width that is text": (
        lambda: describe(channels="wide"),
        run_predict,
        r"model\.safetensors: channels = 'wide'",
    ),
    "other safetensors": (
        lambda: WEIGHTS.replace(MODEL),
        run_predict,
        r"model\.safetensors: does not describe itself",
    ),
    # the encoder's weights
    "no weights": (WEIGHTS.unlink, load_weights, r"model\.weights = '.*': no such file"),
    "pickled weights": (
        lambda: pickled(Path("weights.pth")),
        lambda: load_weights(Path("weights.pth")),
        r"model\.weights = 'weights\.pth': cannot be read: ",
    ),
    "truncated weights": (
        lambda: truncate(WEIGHTS),
        load_weights,
        r"model\.weights = 'weights\.safetensors': cannot be read",
    ),
    "weights with infinity": (
        lambda: change(WEIGHTS, lambda state: spoil_first(state, float("inf"))),
        load_weights,
        r"model\.weights = 'weights\.safetensors': \S+ holds numbers that are not finite",
    ),
    "weights of another shape": (
        lambda: change(WEIGHTS, reshape_first),
        load_weights,
        r"model\.weights = 'weights\.safetensors': ",
    ),
    "weights of another architecture": (
        lambda: save_file({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, WEIGHTS),
        load_weights,
        r"model\.weights = 'weights\.safetensors': ",
    ),
    "weights that are no tensors": (
        lambda: torch.save([1, 2], "weights.pth"),
        lambda: load_weights(Path("weights.pth")),
        r"model\.weights = 'weights\.pth': cannot be read: no tensors by name",
    ),
    # images to predict
    "no images": (Path("own/a.png").unlink, run_predict, r"own: no image"),
    "text for an image": (
        lambda: Path("own/a.png").write_text("no image"),
        run_predict,
        r"own/a\.png: not a readable image",
    ),
    "empty image": (
        lambda: Path("own/a.png").write_bytes(b""),
        run_predict,
        r"own/a\.png: not a readable image",
    ),
    "truncated image": (
        lambda: truncate(Path("own/a.png")),
        run_predict,
        r"own/a\.png: truncated: the image's end marker is missing",
    ),
    "two images of one name": (
        lambda: write_image("own/a.jpg"),
        run_predict,
        r"own/a\.png: has the name of own/a\.jpg; predict them apart",
    ),
    "image that is a folder": (
        lambda: [Path("own/a.png").unlink(), Path("own/a.png").mkdir()],
        run_predict,
        r"own",
    ),
    "output that is a file": (
        lambda: Path("out").write_text("mine"),
        run_predict,
        r"File exists: 'out'",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_bad_networks_and_images_are_one_line(
    workspace: Path, capfd: pytest.CaptureFixture[str], row: str
) -> None:
    spoil, work, expected = ROWS[row]
    spoil()
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as caught:
        guard(work, debug=False)
    line = str(caught.value.code)
    assert line.startswith("error: ") and re.search(expected, line), line
    assert "\n" not in line and len(line) < 500
    assert "Traceback" not in capfd.readouterr().err
    assert not Path("harmed").exists()
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before
    with pytest.raises((ValueError, OSError)):
        guard(work, debug=True)


def test_good_ones_are_taken(workspace: Path) -> None:
    run_predict()
    load_weights()
    network, space = load_network(MODEL)
    assert space == CITYSCAPES and not network.training
    written = {path.as_posix() for path in Path().rglob("*") if path.is_file()}
    outside = {name for name in written if not name.startswith("out/")}
    assert outside == {"model.safetensors", "weights.safetensors", "own/a.png"}
    assert not Path("harmed").exists()
