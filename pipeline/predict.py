"""Label images of one's own: python -m pipeline.predict IMAGE_OR_FOLDER ... --out FOLDER.

For each image: NAME_ids.png (train ids), NAME_colours.png and NAME_overlay.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import command

ENDINGS = (".png", ".jpg", ".jpeg")
KINDS = ("ids", "colours", "overlay")


def predict(model: Path, inputs: list[Path], out: Path, device_name: str) -> None:
    """Write predictions of the images in files and folders.

    Raises ValueError for a missing or unreadable file, no image, or two images of one name.
    """
    import cv2
    import torch
    from tqdm import tqdm

    from ssda.datasets.loading import read_image
    from ssda.engine.checkpoints import load_network
    from ssda.engine.device import pick_device
    from ssda.engine.evaluation import predict_labels
    from ssda.files import write_atomically

    paths = find_images(inputs)
    network, space = load_network(model)
    network.to(pick_device(device_name))
    palette = space.palette()
    out.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, desc="predict", disable=None):
        image = read_image(path)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        labels = predict_labels(network, tensor, tensor.shape[-2:]).numpy()
        colours = palette[labels]
        overlay = cv2.addWeighted(image, 0.5, colours, 0.5, 0.0)
        for kind, picture in zip(KINDS, (labels, colours, overlay), strict=True):
            stored = picture if picture.ndim == 2 else picture[..., ::-1]
            write_atomically(
                out / f"{path.stem}_{kind}.png",
                lambda partial, stored=stored: cv2.imwrite(str(partial), stored),
            )


def find_images(inputs: list[Path]) -> list[Path]:
    """The images among files and in folders; ValueError names what is missing or doubled."""
    paths: list[Path] = []
    for path in inputs:
        if path.is_dir():
            paths += sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
        elif path.is_file():
            paths.append(path)
        else:
            raise ValueError(f"{path}: no such file or folder")
    if not paths:
        raise ValueError(f"{', '.join(map(str, inputs))}: no image ({', '.join(ENDINGS)})")
    names: dict[str, Path] = {}
    for path in paths:
        if path.stem in names:
            raise ValueError(f"{path}: has the name of {names[path.stem]}; predict them apart")
        names[path.stem] = path
    return paths


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("inputs", nargs="+", type=Path, help="images, or folders of images")
    parser.add_argument("--model", type=Path, default=Path("models/adapted.safetensors"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the predictions")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()
    command.guard(
        lambda: predict(arguments.model, arguments.inputs, arguments.out, arguments.device),
        debug=arguments.debug,
    )


if __name__ == "__main__":
    main()
