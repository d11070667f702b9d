"""Hundreds of damaged and odd files, through everything that reads files. Long: for make soak.

A try ends in one line that names the file, or in the pixels of the whole file. JPEGs have no
checksum: a few bytes that are changed or gone inside one may give other pixels, and no reader can
know it; what is cut, or zeros in an image of one pass, is known there too.
"""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import ssda
from pipeline.predict import predict
from ssda.datasets.conversion import check_split, convert_split
from ssda.datasets.layouts import LAYOUTS
from ssda.datasets.loading import EvaluationSamples, read_image, read_label
from ssda.datasets.raw_files import image_facts, raw_table, read_train_ids
from ssda.engine.checkpoints import save_network
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from tests.conftest import SMALL_NETWORK, make_model

pytestmark = pytest.mark.soak

WIDTH, HEIGHT = 60, 44
TRIES = 600
Damage = Callable[[bytes, np.random.Generator], bytes]


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, len(content) - 20))]


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 4)):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def zero(content: bytes, rng: np.random.Generator) -> bytes:
    place, count = int(rng.integers(0, len(content))), int(rng.integers(40, 400))
    return content[:place] + bytes(len(content[place : place + count])) + content[place + count :]


def remove(content: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(0, len(content)))
    return content[:place] + content[place + int(rng.integers(1, 400)) :]


def insert(content: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(0, len(content)))
    return content[:place] + rng.bytes(int(rng.integers(1, 400))) + content[place:]


def append(content: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 400)))


def replace(content: bytes, rng: np.random.Generator) -> bytes:
    """Another kind of file altogether, or none."""
    kept = int(rng.choice([0, 1, 2, 3, 8, 16, 30]))
    return content[:kept] + rng.bytes(int(rng.integers(0, 400)))


DAMAGES: tuple[Damage, ...] = (cut, flip, zero, remove, insert, append, replace)


def photo(rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
    large = cv2.resize(coarse, (WIDTH, HEIGHT)) + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
    return large.clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images(rng: np.random.Generator) -> dict[str, bytes]:
    image, exif = Image.fromarray(photo(rng)), Image.Exif()
    exif[0x112] = 6
    deep = photo(rng).astype(np.uint16) * 257
    return {
        "RGB.png": saved(image, "PNG"),
        "palette.png": saved(image.quantize(32), "PNG", transparency=3),
        "alpha.png": saved(image.convert("RGBA"), "PNG"),
        "bits.png": saved(image.convert("1"), "PNG"),
        "deep.png": cv2.imencode(".png", deep)[1].tobytes(),
        "turned.png": saved(image, "PNG", exif=exif),
        "baseline.jpg": saved(image, "JPEG", quality=92),
        "grey.jpg": saved(image.convert("L"), "JPEG", quality=92),
        "printed.jpg": saved(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "restarts.jpg": saved(image, "JPEG", restart_marker_rows=1),
        "turned.jpg": saved(image, "JPEG", exif=exif),
        "pair.jpg": saved(image, "MPO", save_all=True, append_images=[image]),
    }


def labels(rng: np.random.Generator) -> dict[str, bytes]:
    ids = rng.integers(0, 35, (11, 15), np.uint8).repeat(4, 0).repeat(4, 1)
    palette = Image.fromarray(ids)
    palette.putpalette(bytes(range(256)) * 3)
    return {"grey.png": saved(Image.fromarray(ids), "PNG"), "palette.png": saved(palette, "PNG")}


def outcome(read: Callable[[Path], object], path: Path) -> object:
    """What is read; the message of a ValueError, which must be one line."""
    try:
        return read(path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return str(error)


def is_known(damage: Damage, file: str) -> bool:
    """Whether such a damage in such a file can be told from its content."""
    if file.endswith(".png") or damage in (cut, append):
        return True
    return damage is zero and file in ("baseline.jpg", "grey.jpg", "restarts.jpg")


def test_what_training_reads(tmp_path: Path) -> None:
    told = 0
    for number in range(TRIES):
        rng = np.random.default_rng([17, number])
        files = [*images(rng).items()]
        name, content = files[number % len(files)]
        damage = DAMAGES[number % len(DAMAGES)]
        whole, path = tmp_path / "whole", tmp_path / name
        whole.write_bytes(content)
        path.write_bytes(damage(content, rng))
        found = outcome(read_image, path)
        facts = outcome(lambda path: image_facts(path, None, decode=True), path)
        case = f"try {number}: {damage.__name__} {name}"
        if isinstance(found, str):
            told += 1
            assert found.startswith(f"{path}: "), case
            assert isinstance(facts, str), case
            continue
        assert isinstance(found, np.ndarray) and found.dtype == np.uint8
        if isinstance(facts, tuple):
            assert facts[:2] == found.shape[1::-1], case
        if is_known(damage, name):
            assert np.array_equal(found, read_image(whole)), case
        if damage is append:
            assert isinstance(facts, tuple), case
    assert told > TRIES / 3


def test_what_conversion_reads(tmp_path: Path) -> None:
    layout, told = LAYOUTS["gta"], 0
    table = raw_table(layout, CITYSCAPES)
    for number in range(TRIES // 2):
        rng = np.random.default_rng([18, number])
        name, content = list(labels(rng).items())[number % 2]
        damage = DAMAGES[number % len(DAMAGES)]
        whole, path = tmp_path / "whole", tmp_path / name
        whole.write_bytes(content)
        path.write_bytes(damage(content, rng))
        found = outcome(lambda path: read_train_ids(path, layout, table), path)
        again = outcome(read_label, path)
        if isinstance(found, str):
            told += 1
        else:
            expected = read_train_ids(whole, layout, table)
            assert np.array_equal(found, expected), f"try {number}: {damage.__name__} {name}"
            assert not isinstance(again, str)
    assert told > TRIES / 6


def damaged_set(root: Path, count: int) -> None:
    """A raw set of layout gta, two in three of whose files are damaged."""
    for number in range(count):
        rng = np.random.default_rng([19, number])
        for folder, files in (("images", images(rng)), ("labels", labels(rng))):
            pngs = [content for name, content in files.items() if "turned" not in name]
            content = pngs[number % len(pngs)]
            if number % 3:
                content = DAMAGES[int(rng.integers(len(DAMAGES)))](content, rng)
            path = root / folder / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def test_conversion_and_its_check_name_the_same_files(tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    damaged_set(root, 90)
    arguments = LAYOUTS["gta"], root, "train"
    _, light = check_split(*arguments, space=CITYSCAPES, with_labels=True)
    index, problems = check_split(*arguments, space=CITYSCAPES, with_labels=True, decode=True)
    assert {*light} <= {*problems} and 30 < len(problems) < 150
    with pytest.raises(ValueError, match=f"{len(light)} problems"):
        convert_split(*arguments, out, space=CITYSCAPES, with_labels=True)
    assert not out.exists()
    for line in problems:
        (root / line.split(": ")[0]).unlink(missing_ok=True)
    paired = {path.name for path in (root / "images").iterdir()}
    paired &= {path.name for path in (root / "labels").iterdir()}
    for path in [*(root / "images").iterdir(), *(root / "labels").iterdir()]:
        if path.name not in paired:
            path.unlink()
    index = convert_split(*arguments, out, space=CITYSCAPES, with_labels=True)
    samples = EvaluationSamples(index, None)
    for i in range(len(samples)):
        image, label = samples[i]
        assert label is not None and image.shape[1:] == label.shape


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    settings = make_model(SMALL_NETWORK)
    path = tmp_path / "model.safetensors"
    save_network(path, Segmenter(settings, CITYSCAPES.num_classes), settings, CITYSCAPES)
    return path


def test_prediction_does_what_it_can_read_and_names_the_rest(tmp_path: Path, model: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    damaged_set(folder, 60)
    with pytest.raises(ValueError) as caught:
        predict(ssda.load(model, device="cpu"), [folder / "images"], out)
    lines = str(caught.value).splitlines()
    bad = {
        path.stem
        for path in (folder / "images").iterdir()
        if isinstance(outcome(read_image, path), str)
    }
    assert lines[0] == f"{len(bad)} problems"
    done = {path.name.removesuffix("_ids.png") for path in out.glob("*_ids.png")}
    assert done == {path.stem for path in (folder / "images").iterdir()} - bad
    assert not list(out.rglob("*.partial*"))
