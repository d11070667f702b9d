"""Networks on disk: safetensors with a description of themselves, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ssda.files import write_atomically
from ssda.labels import LabelSpace, parse_space
from ssda.networks.encoders import check_finite
from ssda.networks.segmenter import Segmenter
from ssda.params import Model
from ssda.sections import validate


def save_network(path: Path, network: Segmenter, model: Model, space: LabelSpace) -> None:
    """Write weights and all that is needed to use them: the network's and the classes' names."""
    description = {
        "model": model.model_copy(update={"weights": None}).model_dump(),
        "space": space.content(),
    }
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    metadata = {"ssda": json.dumps(description)}
    try:
        write_atomically(path, lambda partial: save_file(state, str(partial), metadata))
    except SafetensorError as error:  # a full disk, most often
        raise OSError(f"{path}: cannot be written: {error}") from error


def load_network(path: Path) -> tuple[Segmenter, LabelSpace]:
    """The network that `save_network` wrote, on the CPU in evaluation mode, and its classes.

    Raises ValueError naming the file where it is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportUnknownVariableType]
            metadata: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    description: dict[str, Any] = json.loads(metadata.get("ssda", "{}"))
    if "model" not in description:
        raise ValueError(f"{path}: does not describe itself; only files of this project do")
    space = parse_space(description["space"], str(path))
    network = Segmenter(validate(Model, description["model"], str(path)), space.num_classes)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: weights do not fit: {str(error).splitlines()[1].strip().split(', ')[0]}"
        ) from error
    check_finite(state, str(path))
    return network.eval(), space
