"""Networks on disk: safetensors with a description of themselves, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssda.files import UNWRITABLE, check_names, write_atomically
from ssda.labels import LabelSpace, parse_space
from ssda.networks.encoders import SOURCES, check_finite, is_built_in
from ssda.networks.segmenter import Segmenter
from ssda.params import Model, Size
from ssda.sections import Section, parse_json, validate

OF_OLDER_FILES: dict[str, Any] = {"pyramid": "blocks"}
"""What networks are whose file does not say it."""
PYTORCH = (".pth", ".pt", ".ckpt")
"""How names of files of PyTorch end."""
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=0.001, le=1000)]


class Description(Section):
    """What a file says of its network; of where the encoder's weights came from it says nothing."""

    model: dict[str, Any]
    space: dict[str, Any]
    mean: tuple[Mean, Mean, Mean] | None = None
    """Of the images that the encoder learnt from, in [0, 1]; None: what timm says of it."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """Their standard deviation."""
    image_size: Size | None = None
    """(width, height) that target images were resized to; None: they were seen as they are."""


def save_network(
    path: Path,
    network: Segmenter,
    model: Model,
    space: LabelSpace,
    image_size: Size | None = None,
) -> None:
    """Write weights and all that is needed to use them.

    Args:
        path: of the file.
        network: whose weights are written.
        model: what it is.
        space: the names of its classes, and their colours.
        image_size: (width, height) that target images were resized to, if they were.
    """
    encoder = network.encoder
    described = model.model_copy(update={"encoder": encoder.name, "weights": None})
    description: dict[str, Any] = {
        "model": described.model_dump(),
        "space": space.content(),
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
    }
    if image_size is not None:
        description["image_size"] = image_size
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    metadata = {"ssda": json.dumps(description)}
    try:
        write_atomically(path, lambda partial: save_file(state, str(partial), metadata))
    except SafetensorError as error:  # a full disk, most often
        raise OSError(f"{path}: cannot be written: {error}") from error


def load_network(path: Path, settings: Model | None = None) -> tuple[Segmenter, LabelSpace]:
    """The network that `save_network` wrote, on the CPU in evaluation mode, and its classes.

    Nothing but this file is read, whatever it says: encoders are those that are built in. With
    settings the network takes from them what is no matter of weights, such as its dropout.

    Raises ValueError naming the file where it is missing, damaged or of another kind, also than the
    settings say.
    """
    description, model, space = _read_description(path)
    if settings is not None:
        _check_model(path, model, settings)
        model = settings.model_copy(update={"encoder": model.encoder})
    with safe_open(str(path), "pt") as file:  # pyright: ignore[reportUnknownVariableType]
        state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
    check_names(path, state)
    with torch.device("meta"):  # a wrong description must not fill the memory
        blank = Segmenter(model, space.num_classes)
    if problem := _misfit(state, blank.state_dict()):
        raise ValueError(f"{path}: weights do not fit: {problem}")
    check_finite(state, str(path))
    network = Segmenter(model, space.num_classes)
    network.load_state_dict(state)
    if description.mean is not None and description.std is not None:
        network.encoder.normalise(description.mean, description.std)
    return network.eval(), space


def trained_size(path: Path) -> Size | None:
    """(width, height) that a file's network knows target images at; None: as they are.

    Weights are not read. Raises ValueError as `load_network` does.
    """
    return _read_description(path)[0].image_size


def check_kind(path: Path, model: Model, space: LabelSpace) -> None:
    """Raise ValueError, in one line, where a file's network is not of that kind and those classes.

    Weights are not read.
    """
    _, own, classes = _read_description(path)
    _check_model(path, own, model)
    if classes.names != space.names:
        raise ValueError(
            f"{path}: has the classes {', '.join(classes.names)}; labels has "
            f"{', '.join(space.names)}"
        )


def _check_model(path: Path, own: Model, model: Model) -> None:
    if model.encoder.startswith(SOURCES):  # the architecture is not in the name
        model = model.model_copy(update={"encoder": own.encoder})
    if kind(own) != kind(model):
        raise ValueError(f"{path}: is {kind(own)}, model says {kind(model)}")


def kind(model: Model) -> str:
    """What decides the names and shapes of a network's tensors, in words."""
    width = f" of {model.channels} channels" if model.head == "daformer" else ""
    width += " on the last map" if model.pyramid == "last" else ""
    views = "one resolution" if model.detail is None else "two resolutions"
    return f"{model.encoder.partition('.')[0]} with {model.head}{width} at {views}"


def _read_description(path: Path) -> tuple[Description, Model, LabelSpace]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportUnknownVariableType]
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        reason = UNWRITABLE.sub("?", str(error))  # it quotes the file
        hint = "; released networks come in by: python -m pipeline.import_network"
        raise ValueError(
            f"{path}: not a safetensors file ({reason}){hint * (path.suffix in PYTORCH)}"
        ) from error
    content = parse_json(metadata.get("ssda", "{}"), str(path))
    if content == {}:
        raise ValueError(f"{path}: does not describe itself; only files of this project do")
    description = validate(Description, content, str(path))
    model = validate(Model, OF_OLDER_FILES | description.model, str(path))
    space = parse_space(description.space, str(path))
    if not is_built_in(model.encoder):
        raise ValueError(
            f"{path}: model.encoder = {model.encoder!r}: allowed in a file are mit_b0 to mit_b5 "
            "and encoders that timm has built in"
        )
    return description, model, space


def _misfit(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """The first difference in names, shapes and types."""
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            return f"Missing key {name}"
        if name not in expected:
            return f"Unexpected key {name}"
        if state[name].shape != expected[name].shape:
            return f"{name} has the shape {[*state[name].shape]}, not {[*expected[name].shape]}"
        if state[name].dtype != expected[name].dtype:
            return f"{name} is {state[name].dtype}, not {expected[name].dtype}"
    return None
