"""Label images and videos of one's own: python -m pipeline.predict IN ... --out FOLDER.

Of each image NAME_ids.png (train ids), NAME_colours.png, NAME_overlay.png and NAME_uncertainty.png
(predictive entropy: 0 is sure, 255 undecided between all classes); of a video NAME_overlay.webm.
Beside them index.html shows all, classes.json and legend.png say which class is which.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ssda
from pipeline import command
from ssda.files import check_names, walk

if TYPE_CHECKING:
    import numpy as np

    from ssda.engine.labelling import LabelledImage, Labeller

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
HIDDEN = ("thumbs.db", "desktop.ini")
"""What systems leave in folders, beside names that begin with a dot, such as ._IMG_0.jpg."""


@dataclass(frozen=True)
class Seen:
    """What the network says of an image, and where it goes: below the output, without an ending."""

    name: str
    said: LabelledImage


def predict(network: Labeller, inputs: list[Path], out: Path, *, frames: bool = False) -> None:
    """Write predictions of images and videos in files and folders; a batch is in memory at a time.

    With `frames` every frame of a video is written, as an image is.

    Raises ValueError for a missing file, no image, or two images of one name, before any work; for
    unreadable files, which it lists, when the others are done.
    """
    from tqdm import tqdm

    from pipeline.drawing.contact_sheet import write_contact_sheet
    from pipeline.video import count_frames, read_frames, write_frames
    from ssda.datasets.conversion import listed
    from ssda.datasets.loading import read_image

    found, left_out = find_inputs(inputs, out)
    images = {name: path for name, path in found.items() if path.suffix.lower() not in VIDEOS}
    problems: list[str] = []
    lengths: dict[str, int] = {}
    for name in found:
        if name not in images:
            try:
                lengths[name] = count_frames(found[name])
            except ValueError as error:
                problems.append(str(error))
    done: dict[str, list[str]] = {"images": [], "videos": []}

    total = len(images) + sum(lengths.values())
    with tqdm(total=total, desc="predict", unit="image", disable=None) as bar:

        def overlays(name: str, video: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            named = ((f"{name}/{i:06}", frame) for i, frame in enumerate(video))
            for seen in label_all(network, named):
                if frames:
                    write_pictures(out, seen)
                bar.update()
                yield overlay(seen.said)

        def read() -> Iterator[tuple[str, np.ndarray]]:
            for name, path in images.items():
                try:
                    image = read_image(path)
                except ValueError as error:
                    problems.append(str(error))
                    continue
                yield name, image

        for seen in label_all(network, read()):
            write_pictures(out, seen)
            bar.update()
            done["images"].append(seen.name)
        for name in lengths:
            shown = overlays(name, read_frames(found[name]))
            try:
                write_frames(out / f"{name}_overlay.webm", shown, like=found[name])
                done["videos"].append(name)
            except ValueError as error:
                problems.append(str(error))
    if any(done.values()):
        write_contact_sheet(out, done["images"], done["videos"], network.space)
        told = " and ".join(f"{len(names)} {kind}" for kind, names in done.items())
        print(f"{told} are labelled in {out} (index.html shows them){left_out}")
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


def label_all(network: Labeller, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[Seen]:
    """What the network says of named images (H, W, 3), in order."""
    import cv2

    options = network.options
    for names, batch in _batches(images, options.batch if options.windows is None else 1):
        try:
            said = network.label_batch(batch)
        except (RuntimeError, MemoryError, cv2.error) as error:
            if (reason := command.lack_of_memory(error)) is None:
                raise
            raise ValueError(
                f"{names[0]}: out of memory with --batch {options.batch}; try --batch 1, "
                f"--windows 1024 768 or --scale 0.5 ({reason})"
            ) from error
        yield from map(Seen, names, said)


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


def overlay(said: LabelledImage) -> np.ndarray:
    """The classes' colours over the image, half and half."""
    import cv2

    return cv2.addWeighted(said.image, 0.5, said.colours, 0.5, 0.0)


def write_pictures(out: Path, seen: Seen) -> None:
    """Write the four pictures of an image, each whole or not at all."""
    import numpy as np

    from ssda.datasets.image_files import write_png

    pictures = {
        "ids": seen.said.classes,
        "colours": seen.said.colours[..., ::-1],
        "overlay": overlay(seen.said)[..., ::-1],
        "uncertainty": np.rint(255 * seen.said.uncertainty).astype(np.uint8),
    }
    for kind, picture in pictures.items():
        write_png(out / f"{seen.name}_{kind}.png", picture)


def main() -> None:
    """The command line."""
    options = command.tool(__doc__)
    add = options.add_argument
    add("inputs", nargs="+", type=Path, help="images, videos, folders of them")
    add("--model", type=Path, default=Path("models/adapted.safetensors"))
    add("--out", type=Path, required=True, help="folder for the predictions")
    text = "slide square windows over the (scaled) image, in pixels (default: see it whole)"
    add("--windows", nargs=2, type=int, metavar=("EXTENT", "STEP"), help=text)
    text = "images of one size, or windows, a forward pass (default: 1)"
    add("--batch", type=int, default=1, help=text)
    text = "the network sees images at this times their size (default: as large as in training)"
    add("--scale", type=float, help=text)
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--passes", type=int, default=4, help="of the uncertainty (default: 4)")
    add("--frames", action="store_true", help="the frames of videos as pictures, too")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")

    def work(given: Namespace) -> None:
        network = ssda.load(
            given.model,
            device=given.device,
            windows=given.windows,
            batch=given.batch,
            scale=given.scale,
            flip=given.flip,
            passes=given.passes,
        )
        predict(network, given.inputs, given.out, frames=given.frames)

    command.start(options, work)


if __name__ == "__main__":
    main()
