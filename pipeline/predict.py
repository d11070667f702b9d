"""Label images and videos of one's own: python -m pipeline.predict IN ... --out FOLDER.

Of each image NAME_ids.png (train ids), NAME_colours.png, NAME_overlay.png and NAME_uncertainty.png
(predictive entropy: 0 is sure, 255 undecided between all classes); of a video NAME_overlay.mp4.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import command
from ssda.files import check_names, walk
from ssda.params import Windows

if TYPE_CHECKING:
    import numpy as np

    from ssda.labels import LabelSpace
    from ssda.networks.segmenter import Segmenter

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
HIDDEN = ("thumbs.db", "desktop.ini")
"""What systems leave in folders, beside names that begin with a dot, such as ._IMG_0.jpg."""


@dataclass(frozen=True)
class Settings:
    """How images are looked at.

    Attributes:
        device: auto, cuda or cpu.
        batch: images of one size, or windows of one image, a forward pass.
        windows: sliding windows; None for the image as a whole.
        scale: the network sees an image at so many times its size.
        flip: average with the mirrored image.
        passes: Monte-Carlo passes of the uncertainty.
        frames: write every frame of a video, as an image is.
    """

    device: str = "auto"
    batch: int = 1
    windows: Windows | None = None
    scale: float = 1.0
    flip: bool = False
    passes: int = 4
    frames: bool = False


@dataclass(frozen=True)
class Seen:
    """An image and what the network says of it.

    Attributes:
        name: where it goes, below the output folder and without an ending.
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 train ids.
        uncertainty: (H, W) in [0, 1].
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    uncertainty: np.ndarray


def predict(model: Path, inputs: list[Path], out: Path, settings: Settings) -> None:
    """Write predictions of images and videos in files and folders; a batch is in memory at a time.

    Raises ValueError for a missing file, no image, or two images of one name, before any work; for
    unreadable files, which it lists, when the others are done.
    """
    from tqdm import tqdm

    from pipeline.video import count_frames, read_frames, write_frames
    from ssda.datasets.conversion import listed
    from ssda.datasets.loading import read_image
    from ssda.engine.checkpoints import load_network
    from ssda.engine.device import pick_device, pick_precision

    found, left_out = find_inputs(inputs, out)
    images = {name: path for name, path in found.items() if path.suffix.lower() not in VIDEOS}
    problems: list[str] = []
    frames: dict[str, int] = {}
    for name in found:
        if name not in images:
            try:
                frames[name] = count_frames(found[name])
            except ValueError as error:
                problems.append(str(error))
    network, space = load_network(model)
    device = pick_device(settings.device)
    network.to(device).encoder.precision = pick_precision("auto", device)
    done = {"images": 0, "videos": 0}

    total = len(images) + sum(frames.values())
    with tqdm(total=total, desc="predict", unit="image", disable=None) as bar:

        def overlays(name: str, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            named = ((f"{name}/{i:06}", frame) for i, frame in enumerate(frames))
            for seen in look(network, named, settings):
                if settings.frames:
                    write_pictures(out, seen, space)
                bar.update()
                yield overlay(seen, space)

        def read() -> Iterator[tuple[str, np.ndarray]]:
            for name, path in images.items():
                try:
                    image = read_image(path)
                except ValueError as error:
                    problems.append(str(error))
                    continue
                yield name, image

        for seen in look(network, read(), settings):
            write_pictures(out, seen, space)
            bar.update()
            done["images"] += 1
        for name in frames:
            shown = overlays(name, read_frames(found[name]))
            try:
                write_frames(out / f"{name}_overlay.mp4", shown, like=found[name])
                done["videos"] += 1
            except ValueError as error:
                problems.append(str(error))
    if any(done.values()):
        told = " and ".join(f"{count} {kind}" for kind, count in done.items())
        print(f"{told} are labelled in {out}{left_out}")
    if problems:
        raise ValueError(listed(problems))


def find_inputs(inputs: list[Path], out: Path) -> tuple[dict[str, Path], str]:
    """Name of the output to file, of the files and of what lies in folders, at any depth.

    Links are followed, hidden files skipped, what is below `out` is no input. The second value
    tells how many files are left out, for what they are, such as "; 2 files left out (.heic)".

    Raises ValueError for what is missing or doubled, and for names that cannot be written down.
    """
    found: dict[str, Path] = {}
    others: list[str] = []
    for given in inputs:
        if given.is_dir():
            if given.resolve() == out.resolve():
                raise ValueError(f"--out {out}: must be another folder than the input")
            files = [Path(path) for path in sorted(walk(str(given), _is_shown)) if _is_shown(path)]
            named = [(file.relative_to(given).with_suffix("").as_posix(), file) for file in files]
        elif given.is_file():
            named = [(given.stem, given)]
        else:
            raise ValueError(f"{given}: no such file or folder")
        for name, file in named:
            if file.resolve().is_relative_to(out.resolve()):
                continue
            if file != given and file.suffix.lower() not in (*IMAGES, *VIDEOS):
                others.append(file.suffix.lower())
            elif name in found:
                raise ValueError(f"{file}: has the name of {found[name]}; predict them apart")
            else:
                found[name] = file
    check_names("input", map(str, found.values()))
    kinds = ", ".join(sorted({ending or "no ending" for ending in others}))
    several = "s" if len(others) > 1 else ""
    left_out = f"; {len(others)} file{several} left out ({kinds})" if others else ""
    if not found:
        endings = ", ".join((*IMAGES, *VIDEOS))
        places = ", ".join(map(str, inputs))
        raise ValueError(f"{places}: no image or video ({endings}){left_out}")
    return found, left_out


def _is_shown(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and name.lower() not in HIDDEN


def look(
    network: Segmenter, images: Iterable[tuple[str, np.ndarray]], settings: Settings
) -> Iterator[Seen]:
    """What the network says of named images (H, W, 3), in order."""
    import cv2
    import torch

    from ssda.engine.evaluation import predict_uncertainty

    for names, batch in _batches(images, settings.batch if settings.windows is None else 1):
        try:
            inputs = [_scaled(image, settings.scale) for image in batch]
            labels, uncertainty = predict_uncertainty(
                network,
                torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in inputs]),
                torch.Size(batch[0].shape[:2]),
                settings.passes,
                random_state=0,
                windows=settings.windows,
                per_pass=settings.batch,
                flip=settings.flip,
            )
        except (RuntimeError, MemoryError, cv2.error) as error:
            if (reason := command.lack_of_memory(error)) is None:
                raise
            raise ValueError(
                f"{names[0]}: out of memory with --batch {settings.batch}; try --batch 1, "
                f"--windows 1024 768 or --scale 0.5 ({reason})"
            ) from error
        for i, (name, image) in enumerate(zip(names, batch, strict=True)):
            yield Seen(name, image, labels[i].numpy(), uncertainty[i].numpy())


def _batches(
    images: Iterable[tuple[str, np.ndarray]], batch_size: int
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Neighbours of one size together."""
    names: list[str] = []
    batch: list[np.ndarray] = []
    for name, image in images:
        if batch and (len(batch) == batch_size or image.shape != batch[0].shape):
            yield names, batch
            names, batch = [], []
        names.append(name)
        batch.append(image)
    if batch:
        yield names, batch


def _scaled(image: np.ndarray, scale: float) -> np.ndarray:
    import cv2

    if scale == 1.0:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def overlay(seen: Seen, space: LabelSpace) -> np.ndarray:
    """The classes' colours over the image, half and half."""
    import cv2

    return cv2.addWeighted(seen.image, 0.5, space.palette()[seen.labels], 0.5, 0.0)


def write_pictures(out: Path, seen: Seen, space: LabelSpace) -> None:
    """Write the four pictures of an image, each whole or not at all."""
    import cv2
    import numpy as np

    from ssda.files import write_atomically

    pictures = {
        "ids": seen.labels,
        "colours": space.palette()[seen.labels][..., ::-1],
        "overlay": overlay(seen, space)[..., ::-1],
        "uncertainty": np.rint(255 * seen.uncertainty).astype(np.uint8),
    }
    for kind, picture in pictures.items():
        content = cv2.imencode(".png", picture)[1].tobytes()
        write: Callable[[Path], Any] = lambda partial, c=content: partial.write_bytes(c)  # noqa: E731
        write_atomically(out / f"{seen.name}_{kind}.png", write)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("inputs", nargs="+", type=Path, help="images, videos, folders of them")
    parser.add_argument("--model", type=Path, default=Path("models/adapted.safetensors"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the predictions")
    parser.add_argument(
        "--windows",
        nargs=2,
        type=command.at_least(1),
        metavar=("EXTENT", "STEP"),
        help="slide square windows over the (scaled) image, in pixels (default: see it whole)",
    )
    parser.add_argument(
        "--batch",
        type=command.at_least(1),
        default=1,
        help="images of one size, or windows, a forward pass (default: 1)",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="the network sees images at this times their size (default: 1)",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--passes", type=command.at_least(1), default=4, help="of the uncertainty (default: 4)"
    )
    parser.add_argument(
        "--frames", action="store_true", help="the frames of videos as pictures, too"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args()

    def work() -> None:
        windows = command.square_windows(given.windows)
        if not 0.0 < given.scale < 100.0:
            raise ValueError(f"--scale {given.scale}: must be above 0 and below 100")
        settings = Settings(
            given.device, given.batch, windows, given.scale, given.flip, given.passes, given.frames
        )
        predict(given.model, given.inputs, given.out, settings)

    command.guard(work, debug=given.debug)


if __name__ == "__main__":
    main()
