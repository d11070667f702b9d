"""Networks on disk: safetensors with a description of themselves, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ssda.labels import LabelSpace
from ssda.networks.segmenter import Segmenter
from ssda.params import Model


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final newline; NaN is an error."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda partial: void(partial.write_text(text, encoding="utf-8")))


def void(_: object) -> None:
    """Drop a result."""


def save_network(path: Path, network: Segmenter, model: Model, space: LabelSpace) -> None:
    """Write weights and all that is needed to use them: the network's and the classes' names."""
    description = {
        "encoder": model.encoder,
        "channels": model.channels,
        "dropout": model.dropout,
        "classes": space.names,
        "colours": space.colours,
        "things": space.things,
    }
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    metadata = {"ssda": json.dumps(description)}
    write_atomically(path, lambda partial: save_file(state, str(partial), metadata))


def load_network(path: Path) -> tuple[Segmenter, LabelSpace]:
    """The network that `save_network` wrote, on the CPU in evaluation mode, and its classes.

    Raises ValueError naming the file where it is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportUnknownVariableType]
            metadata: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    if "ssda" not in metadata:
        raise ValueError(f"{path}: does not describe itself; only files of this project do")
    description: dict[str, Any] = json.loads(metadata["ssda"])
    space = LabelSpace(
        names=tuple(description["classes"]),
        colours=tuple((r, g, b) for r, g, b in description["colours"]),
        things=tuple(description["things"]),
    )
    network = Segmenter(
        description["encoder"],
        description["channels"],
        description["dropout"],
        space.num_classes,
    )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: weights do not fit: {str(error).splitlines()[1].strip()}") from error
    return network.eval(), space
