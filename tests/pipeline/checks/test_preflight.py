"""What training would refuse is refused before the first stage."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from pipeline.checks.finished import stage_key
from pipeline.checks.preflight import PASSED, check_dependencies, preflight
from pipeline.dependencies import updated
from ssda.engine.checkpoints import save_network
from ssda.labels import load_space
from ssda.networks.encoders import Encoder
from ssda.networks.segmenter import Segmenter
from ssda.sections import read_yaml
from tests.conftest import ROOT, SMALL_ENCODER, make_model, make_params, write_encoder

START = Path("start.safetensors")

RAW = {
    "sources.game.root": "game",
    "target.root": "city",
    "model.encoder": SMALL_ENCODER,
    "model.weights": "encoder.safetensors",
}
IMAGES = ("game/images/0.png", "city/leftImg8bit/train/town/0_leftImg8bit.png")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw images of 256 x 128, and weights of the small encoder."""
    monkeypatch.chdir(tmp_path)
    write_encoder(Path("encoder.safetensors"))
    subprocess.run(["git", "init", "--quiet"], check=True)
    for path in IMAGES:
        write_image(path, (256, 128))


def write_image(path: str, size: tuple[int, int], orientation: int = 1) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path, exif=exif)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.encoder": "resnet19"}, "model.encoder = 'resnet19': not an encoder"),
        ({"model.encoder": "resnet18.mine"}, "model.encoder = 'resnet18.mine': not an encoder"),
        ({"model.encoder": "local-dir:nowhere"}, "model.encoder = 'local-dir:nowhere': not an"),
        ({"model.encoder": "ftp:x"}, "model.encoder = 'ftp:x': not an encoder"),
        ({"model.encoder": "pvt_v2_b0", "model.head": "deeplabv2"}, ".*model.head = 'deeplabv2'"),
        ({"model.encoder": "mit_b0", "model.checkpointing": True}, "model.checkpointing = True"),
        ({"model.weights": "nowhere.pth"}, "model.weights = 'nowhere.pth': no such file"),
        ({"model.head": "deeplabv2"}, "feature_distance.stride = 16: the encoder has strides"),
        ({"adapt.optimiser.layer_decay": 0.9}, "optimiser.layer_decay = 0.9: must be 1"),
        ({"pretrain.optimiser.layer_decay": 0.9}, "optimiser.layer_decay = 0.9: must be 1"),
        (
            {"images.crop": [32, 32], "adapt.batch_size": 1},
            r"images.crop = \[32, 32\]: encoder 'test_.*' cannot be trained on 1 images of 32 x 32",
        ),
        (
            {"model.encoder": "maxvit_tiny_tf_224"},
            r"images.crop = \[256, 128\]: encoder 'maxvit_tiny_tf_224' cannot .* window",
        ),
        (
            {"model.encoder": "vit_tiny_patch16_224", "images.crop": [64, 40]},
            r"images.crop = \[64, 40\]: sides must be multiples of 16",
        ),
        (
            {"adapt.margins.left": 100, "adapt.margins.right": 156},
            r"adapt.margins \(.*\): leaves nothing of city/.*, which is 256 x 128",
        ),
        (
            {"images.target_size": [512, 128], "adapt.margins.top": 64, "adapt.margins.bottom": 64},
            r"adapt.margins \(.*\): leaves nothing of city/.*, which is 512 x 128",
        ),
        (
            {"images.crop": [320, 128]},
            r"images.crop = \[320, 128\]: larger than game/images/0.png, which is 256 x 128",
        ),
    ],
)
def test_what_training_would_refuse_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        preflight(make_params(RAW | overrides))
    assert "\n" not in str(caught.value)
    assert not PASSED.exists()


def test_images_are_looked_at_as_they_are_shown() -> None:
    write_image(IMAGES[0], (128, 256), orientation=6)
    preflight(make_params(RAW))
    write_image(IMAGES[0], (128, 256))
    with pytest.raises(ValueError, match=r"images/0.png, which is 128 x 256"):
        preflight(make_params(RAW | {"adapt.batch_size": 3}))


def test_the_target_s_crop_is_looked_at() -> None:
    write_image(IMAGES[1], (128, 100))
    with pytest.raises(ValueError, match=r"0_leftImg8bit.png, which is 128 x 100"):
        preflight(make_params(RAW | {"adapt.batch_size": 3}))


def write_weights(path: str, overrides: dict[str, Any]) -> None:
    network = Encoder(make_params(overrides).model).network
    state = getattr(network, "network", network).state_dict()
    save_file({name: values.contiguous() for name, values in state.items()}, path)


@pytest.mark.parametrize("encoder", ["mit_b0", "resnet18"])
def test_crops_that_encoders_take_pass(encoder: str) -> None:
    changes = {"model.encoder": encoder, "adapt.losses.feature_distance": 0.0}
    if encoder != "resnet18":  # whose batch normalisation would see one value a channel
        changes |= {"images.crop": [32, 32], "adapt.batch_size": 1, "sampling.min_pixels": 10}
    write_weights("weights.safetensors", changes)
    preflight(make_params(RAW | changes | {"model.weights": "weights.safetensors"}))


def test_weights_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *, pretrained: bool, **_: object) -> None:
        raise OSError("no route to host")

    make, changes = timm.create_model, {"model.encoder": "resnet18", "model.weights": None}

    def create(name: str, **options: Any) -> Any:
        return (fail if options.get("pretrained") else make)(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        ValueError, match=r"^model.encoder = 'resnet18': .*could not be downl.*no r"
    ):
        preflight(make_params(RAW | changes))
    assert not PASSED.exists()


def test_a_file_of_weights_is_looked_at_when_it_changes() -> None:
    given = make_params(RAW | {"model.weights": "weights.safetensors"})
    write_weights("weights.safetensors", {"model.encoder": SMALL_ENCODER})
    preflight(given)
    write_weights("weights.safetensors", {"model.encoder": "resnet18"})
    with pytest.raises(ValueError, match=r"^model\.weights = 'w.*does not fit encoder 'test_eff"):
        preflight(given)
    Path("weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^model\.weights = 'weights.*': no such file"):
        preflight(given)


def test_what_has_passed_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr("pipeline.checks.preflight.check_network", lambda *_: looked.append(_))
    for _ in range(2):
        preflight(make_params(RAW))
    preflight(make_params(RAW | {"runtime.workers": 0}))
    assert len(looked) == 1
    preflight(make_params(RAW | {"model.channels": 16}))
    assert len(looked) == 2


def write_network(overrides: dict[str, Any], labels: str = "cityscapes") -> Path:
    model = make_model({"model.encoder": SMALL_ENCODER} | overrides)
    space = load_space(labels)
    save_network(START, Segmenter(model, space.num_classes), model, space)
    return START


def test_a_network_to_start_from_is_looked_at_each_time() -> None:
    starting = make_params(RAW | {"adapt.start": str(START)})
    for change, message in (
        (lambda: None, "no such file"),
        (lambda: START.write_bytes(b"x" * 100), "not a safetensors file"),
        (
            lambda: write_network({"model.channels": 16}),
            "is test_efficientnet with daformer of 16 channels at one resolution, model says "
            "test_efficientnet with daformer of 48 channels at one resolution$",
        ),
        (
            lambda: write_network({"model.detail": [128, 128], "images.crop": [256, 256]}),
            "is test_efficientnet with daformer of 48 channels at two resolutions, model says",
        ),
        (lambda: write_network({}, "own.yaml"), "has the classes a, b; labels has road, sidewalk"),
        (lambda: write_network({"model.dropout": 0.5}), None),
        (lambda: START.unlink(), "no such file"),
    ):
        Path("own.yaml").write_text("classes: {a: [0, 0, 0], b: [1, 1, 1]}\n")
        change()
        if message is None:
            preflight(starting)
            continue
        with pytest.raises(ValueError, match=f"^adapt.start: {START}: {message}") as caught:
            preflight(starting)
        assert "\n" not in str(caught.value)


def test_a_network_to_start_from_must_be_in_dvc_yaml() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    params = make_params(RAW | {"adapt.start": str(START)})
    Path("dvc.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^adapt\.start = .*run python -m pipeline.dependencies"):
        check_dependencies(params)
    Path("dvc.yaml").write_text(updated(text, params))
    check_dependencies(params)
    deps = read_yaml(Path("dvc.yaml"))["stages"]["adapt"]["deps"]
    assert "${adapt.start}" in deps
    assert updated(Path("dvc.yaml").read_text(), make_params(RAW)) == text


def test_another_network_to_start_from_is_another_state() -> None:
    params = make_params(RAW | {"adapt.start": str(START)})
    keys: set[str] = set()
    for content in (b"one", b"two"):
        START.write_bytes(content)
        keys |= {stage_key("adapt", params), stage_key("pretrain", params)}
    assert len(keys) == 3
