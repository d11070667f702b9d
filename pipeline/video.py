"""Videos, a frame at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

# What OpenCV says of a broken file is told in one line below; it reads them when it opens one.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from pipeline.silence import silenced
from pipeline.training.state import warn
from ssda.files import write_atomically

RATE = 25.0
"""Frames a second of a video that does not say."""


def count_frames(path: Path) -> int:
    """How many frames a video says it has; 0 where it does not say.

    Raises ValueError naming the file where it is no readable video.
    """
    return _length(_open(path))


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB, in order.

    Raises ValueError naming the file where it has none; one that ends early is a warning.
    """
    video, count = _open(path), 0
    while True:
        good, frame = video.read()
        if not good:
            break
        count += 1
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    if count == 0:
        raise ValueError(f"{path}: not a readable video")
    if count < _length(video):
        warn(f"{path}: ends after {count} of {_length(video)} frames")


def write_frames(path: Path, frames: Iterable[np.ndarray], *, like: Path) -> None:
    """Write frames (H, W, 3) uint8 RGB of one size as WebM (VP8), as fast as the video `like`.

    Browsers play it; OpenCV's packages come without an encoder of H.264. Odd sides lose a pixel.
    The file is whole or not there.
    """
    rate = _open(like).get(cv2.CAP_PROP_FPS)

    def write(partial: Path) -> None:
        writer = None
        for frame in frames:
            height, width = (side - side % 2 for side in frame.shape[:2])
            if writer is None:
                code = cv2.VideoWriter.fourcc(*"VP80")
                speed = rate if 0 < rate < 1000 else RATE
                with silenced(2):  # OpenCV says that it is not supported, and writes it
                    writer = cv2.VideoWriter(str(partial), code, speed, (width, height))
                if not writer.isOpened():
                    raise ValueError(f"{path}: OpenCV cannot write a video of {width} x {height}")
            writer.write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))
        if writer is not None:
            writer.release()

    write_atomically(path, write)


def _length(video: cv2.VideoCapture) -> int:
    return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))


def _open(path: Path) -> cv2.VideoCapture:
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise ValueError(f"{path}: not a readable video")
    return video
