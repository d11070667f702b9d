"""Take in a network that others released: python -m pipeline.import_network FILE.pth --out FILE.

Files of MMSegmentation 0.x, as DAFormer, HRDA, MIC and SSDA publish them; which network it is, its
tensors tell. With --to mmseg a network of this project becomes such a file.
"""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline import command
from ssda.files import check_names, write_atomically
from ssda.labels import load_space
from ssda.params import Size

if TYPE_CHECKING:
    from torch import Tensor

    from ssda.networks.released import Role


def take_in(path: Path, out: Path, labels: str | None, role: Role | None, detail: Size) -> None:
    """Write the network in a released file as one of this project's.

    Args:
        path: the file of PyTorch.
        out: the file to write.
        labels: its classes; None: the 19 of Cityscapes, by the names that the file has of them.
        role: which of its networks; None: the one that its authors score.
        detail: (width, height) of the windows of details, if it has two resolutions.

    Raises:
        ValueError: the file holds no such network; then nothing is written.
    """
    from ssda.engine.checkpoints import kind, save_network
    from ssda.networks.released import from_published, one_network, recognise
    from ssda.tensors import read_torch_file

    space = load_space(labels or "cityscapes")
    content = read_torch_file(path)
    state = one_network(_tensors(content, path), role, str(path))
    model, num_classes = recognise(state, str(path), detail)
    if num_classes != space.num_classes:
        raise ValueError(
            f"{path}: has {num_classes} classes, labels {labels or 'cityscapes'} "
            f"{space.num_classes}; --labels takes a YAML that names them"
        )
    named = _classes(content)
    if labels is None and named is not None and named != space.names:
        pairs = zip(named, space.names, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), (len(named), num_classes))
        raise ValueError(
            f"{path}: meta.CLASSES has {first[0]!r} where labels cityscapes has {first[1]!r}; "
            "--labels takes a YAML that names its classes"
        )
    network = from_published(state, model, num_classes, str(path))
    save_network(out, network, model, space)
    print(f"{out}: {kind(model)}, {num_classes} classes")


def give_out(path: Path, out: Path) -> None:
    """Write a network of this project as a file that MMSegmentation 0.x loads.

    Raises ValueError where it has no form there; then nothing is written.
    """
    import torch

    from ssda.engine.checkpoints import load_network
    from ssda.networks.released import published_state

    network, space = load_network(path)
    try:
        state = published_state(network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    colours = [list(colour) for colour in space.colours]
    content = {
        "meta": {"CLASSES": space.names, "PALETTE": colours},
        "state_dict": OrderedDict((name, value.contiguous()) for name, value in state.items()),
    }
    write_atomically(out, partial(torch.save, content))
    print(f"{out}: {len(state)} tensors, {space.num_classes} classes")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """All tensors by name, which lie under `state_dict` or are all that the file holds."""
    from torch import Tensor

    if isinstance(content, Mapping):
        content = cast("Mapping[Any, Any]", content)
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: holds no tensors by name")
    for name, value in cast("Mapping[Any, Any]", content).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name!r} is no tensor: not the file of a network")
    state = dict(cast("Mapping[str, Tensor]", content))
    check_names(path, state)
    return state


def _classes(content: Any) -> tuple[str, ...] | None:
    """What the file says of its classes' names."""
    meta = content.get("meta")
    named = cast("Any", meta).get("CLASSES") if isinstance(meta, Mapping) else None
    return tuple(map(str, named)) if isinstance(named, list | tuple) else None


def check_out(path: Path, out: Path, ending: str) -> None:
    """Raise ValueError for a file to write that is the one to read, or has another's name."""
    if out.suffix != ending:
        raise ValueError(f"--out {out}: must end in {ending}")
    if out.resolve() == path.resolve():
        raise ValueError(f"--out {out}: is the file itself")


def main() -> None:
    """The command line."""
    options = command.tool(__doc__)
    add = options.add_argument
    add("file", type=Path, help="a released .pth, or with --to mmseg one of ours")
    add("--out", type=Path, required=True, help="file to write")
    text = "of a file that holds both (default: the student, which the authors score)"
    add("--network", choices=("student", "teacher"), help=text)
    add("--labels", help="YAML of its classes (default: Cityscapes' 19)")
    text = "of the detail windows of two resolutions, in pixels (default: 512 512, as HRDA's)"
    sides = ("WIDTH", "HEIGHT")
    add("--detail", nargs=2, type=int, default=(512, 512), metavar=sides, help=text)
    add("--to", choices=("mmseg",), help="write a file for MMSegmentation 0.x")

    def work(given: Namespace) -> None:
        if given.to and (given.network or given.labels):
            options.error("--to mmseg takes neither --network nor --labels")
        check_out(given.file, given.out, ".pth" if given.to else ".safetensors")
        if given.to:
            give_out(given.file, given.out)
        else:
            take_in(given.file, given.out, given.labels, given.network, tuple(given.detail))

    command.start(options, work)


if __name__ == "__main__":
    main()
