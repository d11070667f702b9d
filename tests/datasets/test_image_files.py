"""Image files: what is read of each kind, and what is named instead."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ssda.datasets.image_files import read_rgb
from ssda.datasets.loading import read_image, read_label
from ssda.datasets.raw_files import image_facts

WIDTH, HEIGHT = 90, 60


def photo(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Noise over coarse colours, RGB."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
    large = cv2.resize(coarse, (width, height)).astype(float) + rng.normal(0, 8, (height, width, 3))
    return large.clip(0, 255).astype(np.uint8)


def written(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x112] = orientation
    return data.tobytes()


def segment(content: bytes, data: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG with one more segment at its start."""
    head = struct.pack(">HH", 0xFF00 + marker, len(data) + 2)
    return content[:2] + head + data + content[2:]


def png_of(width: int, height: int) -> bytes:
    """A small file that says it is of this size, and holds no more than a line."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_once_and_so_is_its_size(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    content = written(photo(), kind, exif=exif(orientation))
    path = put(tmp_path / "photo", content)
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    assert np.abs(read_image(path).astype(int) - shown).max() <= 3
    if kind in ("JPEG", "PNG"):
        height, width = shown.shape[:2]
        assert image_facts(path, None) == (width, height, len(content))
        assert image_facts(path, (width, height)) == (width, height, len(content))


@pytest.mark.parametrize(
    "data",
    [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", exif(9)[6:], b"nonsense"],
)
def test_a_header_that_says_nothing_of_turning_turns_nothing(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path / "a.jpg", segment(written(photo(), "JPEG"), b"Exif\0\0" + data))
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)
    assert image_facts(path, None)[:2] == (WIDTH, HEIGHT)


def test_a_label_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    ids = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    path = put(tmp_path / "label.png", written(ids, exif=exif(6)))
    assert np.array_equal(read_label(path), ids)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def hole(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + content[middle + 50 :]


def zeros(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(50) + content[middle + 50 :]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x5A]) + content[middle + 1 :]


def cut_and_ended(content: bytes) -> bytes:
    """As cameras leave it that run out of power."""
    return cut(content) + content[-2:]


@pytest.mark.parametrize(
    ("kind", "damage", "word"),
    [
        ("PNG", cut, "truncated"),
        ("PNG", hole, "damaged"),
        ("PNG", zeros, "damaged"),
        ("PNG", flip, "damaged"),
        ("JPEG", cut, "truncated"),
        ("JPEG", hole, "damaged"),
        ("JPEG", zeros, "damaged"),
        ("JPEG", cut_and_ended, "damaged"),
    ],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_image_is_named_and_is_no_half_image(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    damage: object,
    word: str,
    progressive: bool,
) -> None:
    assert callable(damage)
    content = written(photo(), kind, progressive=progressive)
    path = put(tmp_path / "a", damage(content))
    with pytest.raises(ValueError, match=f"^{path}: {word}"):
        read_image(path)
    with pytest.raises(ValueError, match=f"^{word}"):
        image_facts(path, None, decode=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opacity", [128, 255])
def test_a_tiff_that_would_be_darkened_is_refused(tmp_path: Path, opacity: int) -> None:
    colours = photo()
    alpha = np.full(colours.shape[:2], opacity, np.uint8)
    path = put(tmp_path / "a.tif", written(np.dstack([colours, alpha]), "TIFF"))
    if opacity == 255:
        assert np.array_equal(read_rgb(path), colours)
    else:
        with pytest.raises(ValueError, match="a TIFF with transparent pixels: save it without"):
            read_rgb(path)


def test_a_damaged_tiff_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = written(photo(), "TIFF", compression="tiff_lzw")
    middle = len(content) // 2
    holed = content[:middle] + bytes(1000) + content[middle + 1000 :]
    for damaged, word in ((cut(content), "not a readable image"), (holed, "damaged: ")):
        path = put(tmp_path / "a.tif", damaged)
        with pytest.raises(ValueError, match=f"^{path}: {word}"):
            read_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_preview_in_the_header_is_not_the_end(tmp_path: Path, kind: str) -> None:
    preview = written(photo(8, 8), "JPEG")
    content = written(photo(), "JPEG", quality=95)
    path = put(tmp_path / "a.jpg", cut(segment(content, b"Exif\0\0" + preview)))
    for read in (read_rgb, lambda path: image_facts(path, None)):
        with pytest.raises(ValueError, match=r"^truncated"):
            read(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("more", [b"\0" * 1000, b"ftypmp42" + os.urandom(5000), b"\r\n"])
def test_bytes_behind_the_end_are_no_damage(tmp_path: Path, kind: str, more: bytes) -> None:
    content = written(photo(), kind)
    whole, longer = put(tmp_path / "whole", content), put(tmp_path / "longer", content + more)
    assert np.array_equal(read_image(longer), read_image(whole))
    assert image_facts(longer, None, decode=True) == (WIDTH, HEIGHT, len(content + more))
    for damaged in (cut(content) + more, hole(content) + more):
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            read_image(put(tmp_path / "damaged", damaged))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 7, 130)])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}])
def test_a_blank_image_is_whole(
    tmp_path: Path, colour: tuple[int, int, int], options: dict[str, bool]
) -> None:
    """Its blocks may be zeros alone."""
    image = np.full((300, 400, 3), colour, np.uint8)
    content = written(image, "JPEG", **options)
    path = put(tmp_path / "a.jpg", content)
    assert np.abs(read_image(path).astype(int) - image).max() <= 2
    assert image_facts(path, None, decode=True) == (400, 300, len(content))


def test_what_each_kind_gives(tmp_path: Path) -> None:
    colours, grey = photo(), photo()[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    palette = Image.fromarray(colours).quantize(16)
    bits = Image.fromarray(grey).convert("1")
    cases = {
        "RGB": (written(colours), colours),
        "RGB, interlaced or not": (written(colours, "WEBP", lossless=True), colours),
        "BMP": (written(colours, "BMP"), colours),
        "TIFF": (written(colours, "TIFF", compression="tiff_lzw"), colours),
        "grey": (written(grey), three),
        "grey and alpha": (written(np.dstack([grey, grey])), three),
        "alpha is left out": (written(np.dstack([colours, grey])), colours),
        "palette": (written(palette), np.asarray(palette.convert("RGB"))),
        "palette with alpha": (
            written(palette, transparency=0),
            np.asarray(palette.convert("RGB")),
        ),
        "1 bit": (written(bits), np.asarray(bits.convert("RGB"))),
        "16 bits, grey": (written(grey.astype(np.uint16) * 257), three),
        "16 bits, TIFF": (written(grey.astype(np.uint16) * 257, "TIFF"), three),
        "16 bits, black": (written(np.zeros((4, 4), np.uint16)), np.zeros((4, 4, 3))),
        "one pixel": (written(photo(1, 1)), photo(1, 1)),
        "one column": (written(photo(1, 70)), photo(1, 70)),
    }
    for name, (content, expected) in cases.items():
        assert np.array_equal(read_image(put(tmp_path / "a", content)), expected), name
    inked = Image.fromarray(colours).convert("CMYK")
    printed = read_image(put(tmp_path / "a", written(inked, "JPEG", quality=95)))
    assert np.abs(printed.astype(int) - colours).mean() < 3


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_that_8_would_turn_black_are_refused(
    tmp_path: Path, bits: int, channels: int
) -> None:
    deep = (photo()[..., :channels].astype(np.uint16) << (bits - 8)).squeeze()
    path = put(tmp_path / "a.png", cv2.imencode(".png", deep)[1].tobytes())
    with pytest.raises(ValueError, match=rf"a.png: 16-bit image with values up to {deep.max()}, "):
        read_image(path)
    with pytest.raises(ValueError, match=r"^16-bit image"):
        image_facts(path, None)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_other_depths_are_refused(tmp_path: Path, kind: type) -> None:
    path = put(tmp_path / "a.tif", written(photo()[..., 0].astype(kind), "TIFF"))
    with pytest.raises(ValueError, match=r"a.tif: not a readable image|a.tif: .* pixels, needed"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png_of(33_000, 33_000), "33000 x 33000 pixels, 1089 megapixels: at most 1074 are read"),
        (png_of(30_000, 30_000), "damaged"),
        (png_of(2_000_000, 1), "damaged"),
        (png_of(0, 5), "not a readable PNG or JPEG"),
        (b"", "not a readable image"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xe0text", "truncated"),
        (b"text", "not a readable image"),
    ],
)
def test_what_is_no_image_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = put(tmp_path / "a.png", content)
    with pytest.raises(ValueError, match=f"^{path}: {expected}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_nothing_are_named_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.png: No such file or directory$"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r": Is a directory$"):
        read_label(tmp_path)


def test_what_others_write_while_a_jpeg_is_read_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cv2.imdecode

    def decode(values: np.ndarray, mode: int) -> np.ndarray:
        os.write(2, b"a warning of another thread\n")
        return real(values, mode)

    monkeypatch.setattr(cv2, "imdecode", decode)
    read_image(put(tmp_path / "a.jpg", written(photo(), "JPEG")))
    with pytest.raises(ValueError, match="damaged"):
        read_image(put(tmp_path / "a.jpg", cut_and_ended(written(photo(), "JPEG"))))
    assert capfd.readouterr().err == "a warning of another thread\n" * 2
