"""What can be refused before the first stage runs: all that parameters and raw images tell."""

from __future__ import annotations

from pathlib import Path

from pipeline.repository import digest, root
from pipeline.splits import raw_splits
from ssda.datasets.layouts import find_images
from ssda.files import write_text
from ssda.labels import load_space
from ssda.params import Params

PASSED = Path(".ssda/preflight")
"""What has passed, so that only a change is looked at again: the network takes seconds."""


def preflight(params: Params) -> None:
    """Raise ValueError where training would, for its network, its optimiser or the crops' size."""
    weights = params.model.weights
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"model.weights = {weights!r}: no such file")
    facts = params.model_dump_json(exclude={"random_state", "evaluate", "runtime"})
    passed, now = root() / PASSED, digest(facts, {})
    if passed.is_file() and passed.read_text(encoding="utf-8") == now:
        return
    check_crops(params)
    check_network(params)
    write_text(passed, now)


def check_crops(params: Params) -> None:
    """Raise ValueError where the first image of a split to train on is smaller than the crop.

    As it is shown: its header may turn it. What cannot be read is convert's to tell.
    """
    from ssda.datasets.image_files import read_header

    crop = params.images.crop
    for raw in raw_splits(params):
        size = raw.resize if raw.with_labels else params.images.target_size
        if size is not None or not raw.name.startswith(("sources/", "target/train")):
            continue
        path = raw.root / find_images(raw.layout, raw.root, raw.split)[0].path
        try:
            with path.open("rb") as file:
                width, height = read_header(file).size()
        except (ValueError, OSError):
            continue
        if crop[0] > width or crop[1] > height:
            raise ValueError(
                f"images.crop = {list(crop)}: larger than {path}, which is {width} x {height}"
            )


def check_network(params: Params) -> None:
    """Raise ValueError where the network or its optimisers cannot be; takes no memory."""
    import torch

    from ssda.engine.training import create_optimiser
    from ssda.networks.segmenter import Segmenter

    with torch.device("meta"):
        network = Segmenter(params.model, load_space(params.labels).num_classes)
    for size in filter(None, (params.images.crop, params.model.detail)):
        count = min(params.pretrain.batch_size, params.adapt.batch_size)
        network.encoder.check_crop(size)
        try:
            network.encoder.to("meta")(torch.empty(count, 3, size[1], size[0], device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"images.crop = {list(params.images.crop)}: encoder {params.model.encoder!r} "
                f"cannot be trained on {count} images of {size[0]} x {size[1]}: {reason}"
            ) from error
    for settings in (params.pretrain.optimiser, params.adapt.optimiser):
        create_optimiser(network, settings)
    if params.adapt.losses.feature_distance > 0:
        network.encoder.stage(params.adapt.feature_distance.stride)
