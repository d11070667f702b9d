"""Bad weights, models and images to predict, a row each: one line that says what is wrong."""

import json
import pickle
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ssda
from pipeline.command import guard
from pipeline.predict import predict
from ssda.engine.checkpoints import load_network, save_network
from ssda.engine.pretraining import imagenet_network
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from tests.conftest import SMALL_NETWORK, make_model, make_params, write_encoder

MODEL, WEIGHTS = Path("model.safetensors"), Path("weights.safetensors")


class Harm:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("harmed"),)  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    model = make_model(SMALL_NETWORK)
    save_network(folder / MODEL, Segmenter(model, 19), model, CITYSCAPES)
    write_encoder(folder / WEIGHTS)
    return folder


@pytest.fixture
def workspace(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, an encoder's weights and an image, all good; it is the working directory."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
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


def rewrite(change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the model says of itself and of its classes."""
    with safe_open(str(MODEL), "pt") as file:
        description = json.loads(file.metadata()["ssda"])
    change(description)
    save_file(load_file(MODEL), MODEL, {"ssda": json.dumps(description)})


def describe(**values: object) -> None:
    """Change what the model says of itself."""
    rewrite(lambda description: description["model"].update(values))


def say(text: str) -> None:
    """Let the model describe itself by a text."""
    save_file(load_file(MODEL), MODEL, {"ssda": text})


def head(text: str) -> None:
    """Let the model begin with a text that should list its tensors."""
    MODEL.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(4))


def spoil_first(state: dict[str, torch.Tensor], value: float) -> None:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].view(-1)[0] = value


def reshape_first(state: dict[str, torch.Tensor]) -> None:
    name = next(iter(state))
    state[name] = torch.zeros(1, 2, 3, 4)


def cast_first(state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name] = state[name].to(dtype)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def load_weights(path: Path = WEIGHTS) -> Params:
    params = make_params(SMALL_NETWORK | {"model.weights": str(path)})
    imagenet_network(params, 19)
    return params


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Harm()))


def run_predict() -> None:
    predict(ssda.load(MODEL, device="cpu"), [Path("own")], Path("out"))


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
    "model that names a repository": (
        lambda: describe(encoder="hf-hub:someone/x"),
        run_predict,
        r"model\.safetensors: model\.encoder = 'hf-hub:someone/x': allowed in a file are",
    ),
    "model that names a folder": (
        lambda: describe(encoder="local-dir:own"),
        run_predict,
        r"model\.safetensors: model\.encoder = 'local-dir:own': allowed in a file are",
    ),
    "model of another tag": (
        lambda: describe(encoder="resnet18.of_mine"),
        run_predict,
        r"model\.encoder = 'resnet18\.of_mine': not an encoder that timm can cut",
    ),
    "model that would fill the memory": (
        lambda: describe(encoder="vit_giant_patch14_clip_224", channels=2048),
        run_predict,
        r"model\.safetensors: weights do not fit",
    ),
    "model with a width of 2^40": (
        lambda: describe(channels=2**40),
        run_predict,
        r"model\.safetensors: channels = 1099511627776: .*less than or equal to 2048",
    ),
    "model of a billion classes": (
        lambda: rewrite(lambda said: said["space"].update(classes=10**9)),
        run_predict,
        r"model\.safetensors: classes = 1000000000: ",
    ),
    "model of 1000 classes": (
        lambda: rewrite(
            lambda said: said["space"].update(
                classes={f"c{i}": [i % 256, i // 256, 0] for i in range(1000)}
            )
        ),
        run_predict,
        r"model\.safetensors: classes = .*at most 254",
    ),
    "model whose classes are missing": (
        lambda: rewrite(lambda said: said.pop("space")),
        run_predict,
        r"model\.safetensors: space: missing",
    ),
    "model that divides by nothing": (
        lambda: rewrite(lambda said: said.update(std=[0, 1, 1])),
        run_predict,
        r"model\.safetensors: std\.0 = 0: ",
    ),
    "model with an unknown key": (
        lambda: rewrite(lambda said: said.update(code="import os")),
        run_predict,
        r"model\.safetensors: code = 'import os': no such key",
    ),
    "model whose description is no JSON": (
        lambda: say("{"),
        run_predict,
        r"model\.safetensors: not valid JSON",
    ),
    "model whose description is nested": (
        lambda: say('{"model": ' * 100_000),
        run_predict,
        r"model\.safetensors: not valid JSON",
    ),
    "model whose description is a list": (
        lambda: say('["model"]'),
        run_predict,
        r"model\.safetensors: input should be a valid dictionary",
    ),
    "model whose description is text": (
        lambda: say('{"model": "model", "space": []}'),
        run_predict,
        r"model\.safetensors: model = 'model': ",
    ),
    "model with numbers of 8 bits": (
        lambda: change(MODEL, lambda state: cast_first(state, torch.float8_e4m3fn)),
        run_predict,
        r"model\.safetensors: weights do not fit: \S+ is torch\.float8_e4m3fn, not torch\.float32",
    ),
    "model of complex numbers": (
        lambda: change(MODEL, lambda state: cast_first(state, torch.complex64)),
        run_predict,
        r"model\.safetensors: weights do not fit: \S+ is torch\.complex64, not torch\.float32",
    ),
    "model with a name of two lines": (
        lambda: change(MODEL, lambda state: state.update({"a\n\x1bb": torch.zeros(1)})),
        run_predict,
        r"model\.safetensors: 'a\\n\\x1bb': control characters in a name",
    ),
    "model with a type of two lines": (
        lambda: head(r'{"a": {"dtype": "F\n\u001b", "shape": [1], "data_offsets": [0, 4]}}'),
        run_predict,
        r"model\.safetensors: not a safetensors file",
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
    "weights with a name of two lines": (
        lambda: change(WEIGHTS, lambda state: state.update({"a\nb": torch.tensor(torch.nan)})),
        load_weights,
        r"model\.weights = 'weights\.safetensors': .*'a\\nb': control characters in a name",
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


@pytest.fixture(autouse=True)
def nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a network file made its reader call; a call fails."""
    called: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        called.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_path", refuse)
    return called


@pytest.mark.parametrize("row", ROWS)
def test_bad_networks_and_images_are_one_line(
    workspace: Path,
    nobody_is_called: list[object],
    capfd: pytest.CaptureFixture[str],
    row: str,
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
    assert not Path("harmed").exists() and nobody_is_called == []
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
