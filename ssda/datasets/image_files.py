"""Pixels of image files; a damaged file raises, and is never half an image.

Messages name no file: who calls knows its name.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import cv2
import numpy as np
from cv2.utils import logging

from ssda.files import write_atomically

LARGEST = 1 << 30
"""Pixels of an image; OpenCV reads no more."""
DARK = 1 << 14
"""A 16-bit image below this holds 14 bits or fewer, of which the upper 8 of 16 are nearly black."""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
TIFF = (b"II*\0", b"MM\0*")
"""What files of these kinds begin with."""
SAMPLES = 0x115
"""Tag of a TIFF: numbers a pixel."""
END_OF_IMAGE = b"\xff\xd9"
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG markers behind which the size stands; the first two are of images of one pass."""
CODES, START_OF_SCAN, EXIF_SEGMENT = 0xC4, 0xDA, 0xE1
ZEROS = bytes(32)
"""More zero bits than a block of a JPEG takes."""
TRUNCATED = "truncated: the image's end marker is missing"
DAMAGE = re.compile(
    r"^(?:Corrupt JPEG data: (?!bad ICC)|Premature end|Inconsistent progression|\[ERROR).*\n*",
    re.MULTILINE,
)
"""What libjpeg, and of a TIFF OpenCV, say where they go on with pixels that they made up."""
_listening = Lock()


@dataclass(frozen=True)
class Header:
    """What a PNG or JPEG says of itself before its pixels."""

    width: int
    """As stored."""
    height: int
    """As stored."""
    bits: int
    """Of a channel."""
    orientation: int
    """How to turn the stored pixels before they are shown, by EXIF: 1 is as stored."""
    blank: bool = True
    """Whether zero bits may stand for blocks of one colour, as far as it is known."""

    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        turned = self.orientation in range(5, 9)
        return (self.height, self.width) if turned else (self.width, self.height)


def read_rgb(path: Path) -> np.ndarray:
    """An image as it is to be shown, (H, W, 3) uint8 RGB: turned as its header says.

    Of 16 bits the upper 8 are taken, grey is repeated, palettes are looked up, an alpha channel is
    left out, of several pictures in a file the first is taken.

    Raises ValueError or OSError for what is no image, truncated, damaged, too large, so dark in
    16 bits that 8 would be black, or a TIFF that is transparent: OpenCV darkens it.
    """
    content = path.read_bytes()
    if _is_transparent(content):
        raise ValueError("a TIFF with transparent pixels: save it without its alpha channel")
    mode = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
    if not content.startswith((PNG, JPEG)):
        pixels = decode(content, mode)
    else:
        pixels = decode(content, mode | cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = _turn(pixels, read_header(BytesIO(content)).orientation)
    if pixels.dtype == np.uint16:
        most = int(pixels.max())
        if 0 < most < DARK:
            raise ValueError(
                f"16-bit image with values up to {most}, nearly black in 8 bits: "
                "scale it to 65535, or to 8 bits"
            )
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{pixels.dtype} pixels, needed are 8 or 16 bits")
    return pixels


def decode(content: bytes, mode: int) -> np.ndarray:
    """Pixels of a file's content, by OpenCV's flags for reading.

    Raises ValueError for what is no image, truncated, damaged or too large.
    """
    if fault := find_fault(content):
        raise ValueError(fault)
    values = np.frombuffer(content, np.uint8)
    try:
        if not content or content.startswith(PNG):
            pixels = cv2.imdecode(values, mode) if content else None
        else:
            with _heard(DAMAGE) as told:
                pixels = cv2.imdecode(values, mode)
            if told and pixels is not None:
                raise ValueError(f"damaged: {told[0].rpartition('TIFF_Error ')[2].strip()}")
    except cv2.error as error:
        raise ValueError(f"not a readable image: {error.err}") from error
    if pixels is None:
        raise ValueError("damaged" if content.startswith((PNG, JPEG)) else "not a readable image")
    return pixels


def read_header(file: BinaryIO) -> Header:
    """What a PNG or JPEG says of itself; a JPEG is read up to where its pixels begin.

    Raises ValueError for what is neither, truncated, or too large.
    """
    begin = file.read(len(PNG))
    if begin != PNG and not begin.startswith(JPEG):
        raise ValueError("not a readable PNG or JPEG")
    try:
        header = _png_header(file) if begin == PNG else _jpeg_header(file)
    except (struct.error, IndexError) as error:  # less to read than a field needs
        raise ValueError(TRUNCATED) from error
    pixels = header.width * header.height
    if not pixels:
        raise ValueError("not a readable PNG or JPEG")
    if pixels > LARGEST:
        raise ValueError(
            f"{header.width} x {header.height} pixels, {pixels / 1e6:.0f} megapixels: "
            f"at most {LARGEST / 1e6:.0f} are read"
        )
    return header


def find_fault(content: bytes) -> str | None:
    """What is wrong with a PNG or JPEG, as far as its structure tells.

    What lies behind the end is no fault: some cameras put a film there. Raises ValueError as
    `read_header` does.
    """
    if content.startswith(PNG):
        read_header(BytesIO(content))
        return _png_fault(content)
    if content.startswith(JPEG):
        file = BytesIO(content)
        header = read_header(file)
        end = content.find(END_OF_IMAGE, file.tell())
        if end < 0:
            return TRUNCATED
        hole = -1 if header.blank else content.find(ZEROS, file.tell(), end)
        return f"damaged: zeros in place of pixels at byte {hole}" if hole >= 0 else None
    return None


def read_end(file: BinaryIO) -> int:
    """Bytes of a PNG or JPEG; its end alone is read, or all where that is not the image's.

    Raises ValueError as `find_fault` finds, where the end is missing.
    """
    file.seek(0)
    end = END_OF_IMAGE if file.read(len(JPEG)) == JPEG else b"IEND"
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 32))
    if end not in file.read():
        file.seek(0)
        if fault := find_fault(file.read()):
            raise ValueError(fault)
    return size


def _png_fault(content: bytes) -> str | None:
    """By the checksum of each chunk; a chunk is length, name, data, checksum."""
    view, start = memoryview(content), len(PNG)
    while start + 12 <= len(content):
        end = start + 8 + int.from_bytes(view[start : start + 4])
        if end + 4 > len(content):
            break
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return f"damaged: wrong checksum of the part at byte {start}"
        if content.startswith(b"IEND", start + 4):
            return None
        start = end + 4
    lost = content.find(b"IEND", start) < 0
    return TRUNCATED if lost else f"damaged: wrong length of the part at byte {start}"


def _png_header(file: BinaryIO) -> Header:
    width, height, bits, orientation = 0, 0, 0, 1
    while True:
        length, name = struct.unpack(">I4s", file.read(8))
        if name == b"IDAT":
            return Header(width, height, bits, orientation)
        data = file.read(length + 4)
        if name == b"IHDR":
            width, height, bits = struct.unpack(">IIB", data[:9])
        elif name == b"eXIf":
            orientation = _orientation(data[:length])


def _jpeg_header(file: BinaryIO) -> Header:
    width, height, bits, orientation, components = 0, 0, 0, 1, 0
    shortest: dict[int, int] = {}
    file.seek(2)
    while True:
        (marker,) = struct.unpack(">H", file.read(2))
        while marker == 0xFFFF:  # padding
            (marker,) = struct.unpack(">xH", b"\0\xff" + file.read(1))
        if marker >> 8 != 0xFF:
            raise ValueError("damaged: no marker where one is expected")
        (length,) = struct.unpack(">H", file.read(2))
        data = file.read(max(0, length - 2))
        if marker & 0xFF == START_OF_SCAN:
            # Of the first component, which has blocks everywhere; 0 ends a block.
            blank = data[0] != components or shortest.get(0x10 | data[2] & 0xF, 0) == 0
            return Header(width, height, bits, orientation, blank)
        if marker & 0xFF in FRAMES:
            bits, height, width, count = struct.unpack(">BHHB", data[:6])
            components = count if marker & 0xFF < 0xC2 else -1
        elif marker & 0xFF == CODES:
            while len(data) > 17:  # a table: class and number, lengths of the codes, symbols
                shortest[data[0]] = data[17]
                data = data[17 + sum(data[1:17]) :]
        elif marker & 0xFF == EXIF_SEGMENT and data.startswith(b"Exif\0\0"):
            orientation = _orientation(data[6:])


def _orientation(exif: bytes) -> int:
    """How EXIF data say that an image is turned; 1 where they do not, or it is nonsense."""
    value = _short(exif, 0x112)
    return value if value in range(1, 9) else 1


def _short(content: bytes, wanted: int) -> int:
    """A number of 16 bits by its tag in the first directory of a TIFF, or EXIF data; 0: none."""
    order = {TIFF[0]: "<", TIFF[1]: ">"}.get(content[:4])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        for i in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", content, start + 2 + 12 * i)
            if tag == wanted:
                return value
    except struct.error:  # it points behind its end
        pass
    return 0


def _is_transparent(content: bytes) -> bool:
    """Whether a file is a TIFF of which some pixel is not opaque."""
    if not content.startswith(TIFF) or _short(content, SAMPLES) in (1, 2, 3):
        return False
    pixels = decode(content, cv2.IMREAD_UNCHANGED)
    if pixels.shape[2:] != (4,) or not np.issubdtype(pixels.dtype, np.unsignedinteger):
        return False
    return int(pixels[..., 3].min()) < np.iinfo(pixels.dtype).max


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as EXIF's orientation says they are to be shown."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, in OpenCV's order of channels, as a PNG: whole or not at all."""
    content = cv2.imencode(".png", pixels)[1].tobytes()
    write_atomically(path, lambda partial: partial.write_bytes(content))


@contextmanager
def _heard(pattern: re.Pattern[str]) -> Generator[list[str]]:
    """Collects what is written to stderr inside and matches; one thread at a time.

    It is the only place where decoders tell that pixels are missing.
    """
    found: list[str] = []
    with _listening, tempfile.TemporaryFile() as file:
        level = logging.getLogLevel()
        logging.setLogLevel(logging.LOG_LEVEL_ERROR)
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            logging.setLogLevel(level)
            file.seek(0)
            text = file.read().decode(errors="replace")
            found += pattern.findall(text)
            os.write(2, pattern.sub("", text).encode())
