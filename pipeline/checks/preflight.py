"""What can be refused before the first stage runs: all that parameters and raw images tell."""

from __future__ import annotations

from pathlib import Path

from pipeline.paths import CONVERTED, INVENTORY, METRICS, PRETRAINED
from pipeline.repository import digest, root, stages
from pipeline.splits import raw_splits
from ssda.datasets.layouts import find_images
from ssda.files import write_text
from ssda.labels import load_space
from ssda.params import Params

PASSED = Path(".ssda/preflight")
"""What has passed, so that only a change is looked at again: the network takes seconds."""


def preflight(params: Params) -> None:
    """Raise ValueError where training would, for its network, its optimiser or the crops' size."""
    check_start(params)
    facts = params.model_dump_json(exclude={"random_state", "evaluate", "runtime"})
    weights = params.model.weights
    files = {} if weights is None else {"weights": Path(weights)}
    passed, now = root() / PASSED, digest(facts, files)
    if passed.is_file() and passed.read_text(encoding="utf-8") == now:
        return
    check_images(params)
    check_network(params)
    write_text(passed, now)


def check_places(params: Params) -> None:
    """Raise ValueError for what DVC would refuse later, or has not brought here."""
    here = Path.cwd()
    for folder in (INVENTORY, CONVERTED, PRETRAINED.parent, METRICS):
        if not folder.resolve().is_relative_to(here.resolve()):
            raise ValueError(
                f"{folder}: a link to {folder.resolve()}, where DVC keeps no results: make it a "
                "folder, and put DVC's cache on the other disk (dvc cache dir)"
            )
    for raw in (*params.sources.values(), params.target):
        if root() != here.resolve() and not Path(raw.root).exists():
            raise ValueError(
                f"{raw.root}: not in the folder of this experiment, where only is what git has and "
                "what DVC has and a marker names: give the full path, or dvc add it"
            )
    check_dependencies(params)


def optional_dependencies(params: Params) -> dict[str, tuple[str, str, str | None]]:
    """{stage: (parameter, the dep that it is in dvc.yaml, its value)} of deps that may be missing.

    DVC has none: `python -m pipeline.dependencies` writes one where its value is not null.
    """
    marker = "${target.root}/${target.marker}"
    return {
        "inventory": ("target.marker", marker, params.target.marker),
        "adapt": ("adapt.start", "${adapt.start}", params.adapt.start),
    }


def check_dependencies(params: Params) -> None:
    """Raise ValueError where a dep that the parameters ask for is not in dvc.yaml."""
    written = stages(Path())
    for name, (key, dep, value) in optional_dependencies(params).items():
        if value is not None and name in written and dep not in written[name].deps:
            raise ValueError(
                f"{key} = {value!r}: not in dvc.yaml yet; run python -m pipeline.dependencies"
            )


def check_start(params: Params) -> None:
    """Raise ValueError where adaptation cannot start from the network in `adapt.start`."""
    if params.adapt.start is None:
        return
    from ssda.engine.checkpoints import check_kind

    try:
        check_kind(Path(params.adapt.start), params.model, load_space(params.labels))
    except ValueError as error:
        raise ValueError(f"adapt.start: {error}") from error


def check_images(params: Params) -> None:
    """Raise ValueError where crop or margins do not fit the first image of a split to train on.

    As it is shown: its header may turn it. What cannot be read is convert's to tell.
    """
    from ssda.datasets.image_files import read_header
    from ssda.datasets.loading import check_size

    for raw in raw_splits(params):
        if not raw.name.startswith(("sources/", "target/train")):
            continue
        path = raw.root / find_images(raw.layout, raw.root, raw.split)[0].path
        size = raw.resize if raw.with_labels else params.images.target_size
        if size is None:
            try:
                with path.open("rb") as file:
                    size = read_header(file).size()
            except (ValueError, OSError):
                continue
        check_size(
            path, size, params.images.crop, None if raw.with_labels else params.adapt.margins
        )


def check_network(params: Params) -> None:
    """Raise ValueError where the network, its weights or its optimisers cannot be.

    Only the encoder's weights take memory; where they come from timm's hub, they are there then.
    """
    import torch

    from ssda.engine.training import create_optimiser
    from ssda.networks.encoders import Encoder, load_imagenet_weights
    from ssda.networks.segmenter import Segmenter
    from ssda.processes import micro_batches

    with torch.device("meta"):
        network = Segmenter(params.model, load_space(params.labels).num_classes)
    encoder = network.encoder.to("meta")  # MiT is made on the CPU
    count = min(
        len(range(stage.batch_size)[part])
        for stage in (params.pretrain, params.adapt)
        for part in micro_batches(stage.batch_size, stage.micro_batch_size)
    )
    for size in filter(None, (params.images.crop, params.model.detail)):
        encoder.check_crop(size)
        try:
            encoder(torch.empty(count, 3, size[1], size[0], device="meta"))
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
    load_imagenet_weights(Encoder(params.model), params.model)
