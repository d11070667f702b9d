"""The library's front door: ssda.load and what it says of an image."""

import doctest
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import ssda
from ssda.engine.checkpoints import load_network, save_network
from ssda.engine.evaluation import predict_uncertainty
from ssda.engine.labelling import Labeller
from ssda.labels import CITYSCAPES
from tests.conftest import SMALL_NETWORK, make_model, write_varied_network

MODEL = Path("models/adapted.safetensors")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_varied_network(MODEL)


@pytest.fixture
def labeller() -> Labeller:
    return ssda.load(MODEL, device="cpu")


def picture(width: int, height: int) -> np.ndarray:
    """Coarse noise, RGB."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


def test_the_example_in_the_docstring() -> None:
    Image.fromarray(picture(640, 480)).save("street.jpg")
    (example,) = doctest.DocTestFinder(recurse=False).find(ssda.load, "load")
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example)
    assert runner.failures == 0 and runner.tries > 0


@pytest.mark.parametrize(
    ("scale", "seen"), [(None, (128, 64)), (1.0, (256, 128)), (0.25, (64, 32))]
)
def test_images_are_seen_with_the_pixels_of_training_unless_told(
    labeller: Labeller, scale: float | None, seen: tuple[int, int]
) -> None:
    """The target was resized to 64 x 128: 128 x 64 has as many pixels."""
    settings = make_model(SMALL_NETWORK)
    save_network(Path("resized"), labeller.network, settings, CITYSCAPES, (64, 128))
    sizes: list[tuple[int, int]] = []
    resized = ssda.load("resized", device="cpu", scale=scale)
    resized.network.encoder.register_forward_pre_hook(
        lambda _, given: sizes.append((given[0].shape[3], given[0].shape[2]))
    )
    assert resized.label(picture(256, 128)).classes.shape == (128, 256)
    assert sizes == [seen]


@pytest.mark.parametrize("size", [(150, 90), (33, 8), (1, 1)])
def test_an_image_of_any_size_is_seen_as_the_pipeline_sees_it(
    labeller: Labeller, size: tuple[int, int]
) -> None:
    image = picture(*size)
    said = labeller.label(image)
    labels, entropy = predict_uncertainty(
        load_network(MODEL)[0],
        torch.from_numpy(image).permute(2, 0, 1)[None],
        torch.Size(image.shape[:2]),
        passes=4,
        random_state=0,
    )
    assert said.classes.dtype == np.uint8 and np.array_equal(said.classes, labels[0])
    assert said.uncertainty.dtype == np.float32 and np.array_equal(said.uncertainty, entropy[0])
    assert 0 < said.uncertainty.mean() < 1
    assert said.colours.tolist() == [[list(CITYSCAPES.colours[i]) for i in r] for r in labels[0]]
    assert labeller.names == CITYSCAPES.names


def test_a_file_is_turned_as_its_header_says(labeller: Labeller) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(picture(48, 32)).save("photo.png", exif=exif)
    from_file = labeller.label("photo.png")
    upright = labeller.label(np.rot90(picture(48, 32), -1))
    assert np.array_equal(from_file.image, upright.image)
    assert np.array_equal(from_file.classes, upright.classes)
    assert np.array_equal(from_file.uncertainty, upright.uncertainty)


def test_arrays_that_are_views_or_cannot_be_written_are_taken(labeller: Labeller) -> None:
    wanted = labeller.label(picture(40, 24)).uncertainty
    view = picture(40, 24)[..., ::-1].copy()[..., ::-1]
    fixed = picture(40, 24)
    fixed.flags.writeable = False
    for image in (view, fixed):
        assert np.array_equal(labeller.label(image).uncertainty, wanted)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((24, 40), np.uint8),
        np.zeros((24, 40, 4), np.uint8),
        np.zeros((3, 24, 40), np.uint8),
        np.zeros((24, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}-{image.shape}",
)
def test_an_array_of_another_kind_is_refused(labeller: Labeller, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^image of \w+ and shape \(.*\): needed is uint8 RGB"):
        labeller.label(image)


def test_files_and_options_that_are_wrong_are_one_line(labeller: Labeller) -> None:
    Path("text.png").write_text("no image")
    for path, problem in (("none.png", "No such file"), ("text.png", "not a readable image")):
        with pytest.raises(ValueError, match=f"^{path}: {problem}.*$"):
            labeller.label(path)
    with pytest.raises(ValueError, match=r"^none: no such file$"):
        ssda.load("none")
    with pytest.raises(ValueError, match=r"^options: device = 'gpu': input should be 'auto', 'c"):
        ssda.load(MODEL, device="gpu")
    with pytest.raises(ValueError, match=r"^windows: step \[64, 64\] must be no larger"):
        ssda.load(MODEL, windows=(32, 64))
