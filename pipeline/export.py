"""Write a trained network as ONNX, checked against itself: python -m pipeline.export --out FILE.

It takes `image` (N, 3, H, W), float32 RGB in [0, 1], and gives `logits` (N, C, H, W); normalisation
is part of it, and the classes are in its metadata. N, H and W are free unless --size sets them; a
network of two resolutions takes one size alone.
"""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

from pipeline import command
from pipeline.silence import silenced

FREE = {0: "batch", 2: "height", 3: "width"}
TRACED = (2, 50, 77)
CHECKED = ((1, 96, 160), (3, 45, 130))
"""(N, H, W) that free sizes are traced at, and checked at."""
TOLERANCE = 1e-3
"""Largest difference of logits, as a share of the largest logit."""


def export(model: Path, out: Path, size: tuple[int, int] | None) -> None:
    """Write the network to `out`, for any size or one (width, height), if onnxruntime agrees.

    Raises ValueError for a network that cannot be exported so; then nothing is written.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ValueError(f"{error.name} is missing: pip install '.[onnx]'") from error
    import torch
    from torch import nn

    from ssda.engine.checkpoints import load_network
    from ssda.files import write_atomically
    from ssda.networks.heads import enlarge

    network, space = load_network(model)
    if size is None and network.detail is not None:
        raise ValueError(f"{model}: sees two resolutions, which takes --size WIDTH HEIGHT")

    class FullSize(nn.Module):
        """The network with logits as large as the image."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return enlarge(self.network(images), images.shape[-2:])

    whole = FullSize().eval()
    traced, checked = TRACED, CHECKED
    if size is not None:
        traced = (1, size[1], size[0])
        checked = (traced,)
    told: list[str] = []

    def write(partial: Path) -> None:
        try:
            # The tracing exporter: with the newer one free sizes take minutes (torch 2.14). It
            # warns of what it takes for constant, which is why its result is checked.
            with warnings.catch_warnings(), silenced(1), torch.inference_mode():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    whole,
                    (_noise(traced),),
                    str(partial),
                    dynamo=False,
                    opset_version=18,
                    input_names=["image"],
                    output_names=["logits"],
                    dynamic_axes={"image": FREE, "logits": FREE} if size is None else None,
                )
        except (RuntimeError, torch.onnx.OnnxExporterError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{model}: cannot be exported: {reason}") from error
        content = onnx.load(partial)
        content.metadata_props.add(key="classes", value=json.dumps(space.content()))
        onnx.save(content, partial)
        told.extend(check(partial, whole, shape) for shape in checked)

    write_atomically(out, write)
    print(f"{out}: {'; '.join(told)}")


def check(path: Path, network: Any, shape: tuple[int, int, int]) -> str:
    """How far the file's logits are from the network's for noise (N, H, W), in words.

    Raises ValueError where that is too far.
    """
    import numpy as np
    import onnxruntime
    import torch

    images = _noise(shape)
    text = f"{shape[0]} images of {shape[2]} x {shape[1]}"
    with torch.inference_mode():
        wanted = network(images).numpy()
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (given,) = session.run(None, {"image": images.numpy()})
        difference = float(np.abs(given - wanted).max())
    except Exception as error:  # onnxruntime's own, of no common kind
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"onnxruntime cannot run it for {text}: {reason[:200]}") from error
    largest = float(np.abs(wanted).max())
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"onnxruntime gives other logits for {text}, off by {difference:.3g} of {largest:.3g}; "
            "try --size WIDTH HEIGHT"
        )
    return f"{text}: off by {difference:.1e} of {largest:.1f}"


def _noise(shape: tuple[int, int, int]) -> Any:
    import torch

    count, height, width = shape
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator)


def main() -> None:
    """The command line."""
    options = command.tool(__doc__)
    options.add_argument("--model", type=Path, default=Path("models/adapted.safetensors"))
    text = "file to write, such as model.onnx"
    options.add_argument("--out", type=Path, required=True, help=text)
    text = "of the one image it takes (default: any number of images of any size)"
    sides = ("WIDTH", "HEIGHT")
    options.add_argument("--size", nargs=2, type=command.at_least(1), metavar=sides, help=text)

    def work(given: Namespace) -> None:
        export(given.model, given.out, tuple(given.size) if given.size else None)

    command.start(options, work)


if __name__ == "__main__":
    main()
