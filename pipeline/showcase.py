"""One picture that tells what adaptation does: python -m pipeline.showcase --out FILE.png.

Rows of an image of the source, one of the target, what the network says of the latter before and
after adaptation, and its true labels; images are spread evenly over the splits.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import command
from pipeline.paths import ADAPTED, METRICS, PRETRAINED, SOURCES, TARGET_REPORT
from ssda.params import Params
from ssda.sections import parse_json

if TYPE_CHECKING:
    import numpy as np

CELL = 2.2
"""Inches a column: the picture is read small, in a page."""


def showcase(params: Params, out: Path, count: int) -> None:
    """Draw so many rows from the networks, sets and scores of the last run.

    Raises ValueError where these are missing, or where nothing was pretrained.
    """
    from pipeline.drawing.figures import grid, save
    from ssda.datasets.index import read_index, read_sources
    from ssda.datasets.loading import EvaluationSamples, read_image
    from ssda.engine.checkpoints import load_network
    from ssda.engine.device import pick_device, place, set_up
    from ssda.engine.evaluation import predict_labels

    scores = METRICS / "evaluate.json"
    if not scores.exists() or not PRETRAINED.exists():
        raise ValueError(f"{scores}, {PRETRAINED}: not both are here; run dvc repro, or dvc pull")
    found = parse_json(scores.read_bytes(), str(scores))
    if found["source_only"] is None:
        raise ValueError("pretrain.iterations: 0; there is no network of the source alone to show")
    device = pick_device(params.runtime.device)
    set_up(device, params.compute)
    networks = [
        place(load_network(path)[0], device, params.compute) for path in (PRETRAINED, ADAPTED)
    ]
    source, report = read_sources(SOURCES)[0], read_index(TARGET_REPORT)
    streets = EvaluationSamples(report, params.images.target_size)
    rows: list[list[np.ndarray]] = []
    for row in range(count):
        record = source.records[row * len(source.records) // count]
        image, label = streets[row * len(streets) // count]
        assert label is not None
        says = [
            predict_labels(
                network,
                image,
                label.shape,
                windows=params.evaluate.windows,
                per_pass=params.runtime.evaluation_batch_size,
                flip=params.evaluate.flip,
            ).numpy()
            for network in networks
        ]
        target = image.permute(1, 2, 0).numpy()
        game = as_wide(read_image(source.image_path(record), source.resize), target)
        rows.append([game, target, *says, label.numpy()])
    before, after = (found[name]["miou"] for name in ("source_only", "adapted"))
    titles = [
        f"source: {source.folder.name}",
        "target",
        f"source only: {before:.1f} mIoU",
        f"adapted: {after:.1f} mIoU",
        "truth",
    ]
    save(grid(titles, rows, report.space, cell=CELL), out)


def as_wide(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The middle of an image (H, W, 3) that is as wide for its height as another."""
    (height, width), (rows, columns) = image.shape[:2], other.shape[:2]
    new_height = min(height, width * rows // columns)
    new_width = min(width, height * columns // rows)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return image[top : top + new_height, left : left + new_width]


def main() -> None:
    """The command line."""
    options = command.parser(__doc__)
    options.add_argument("--out", type=Path, required=True, help="PNG to write")
    options.add_argument("--rows", type=command.at_least(1), default=3, help="default: 3")

    def work(given: Namespace) -> None:
        showcase(command.read_params(given.params), given.out, given.rows)
        print(given.out)

    command.start(options, work)


if __name__ == "__main__":
    main()
