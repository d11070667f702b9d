"""Cross-domain scene segmentation with dynamic subdomains: the library."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssda.engine.labelling import Labeller

__all__ = ["__version__", "load"]
__version__: str
"""Of the installed package."""


def load(
    path: str | PathLike[str],
    *,
    device: str = "auto",
    windows: tuple[int, int] | None = None,
    batch: int = 1,
    scale: float | None = None,
    flip: bool = False,
    passes: int = 4,
) -> Labeller:
    """A trained network that labels images, as `python -m pipeline.predict` does.

    >>> import ssda
    >>> network = ssda.load("models/adapted.safetensors")
    >>> network.names[:3]
    ('road', 'sidewalk', 'building')
    >>> result = network.label("street.jpg")  # or an array (height, width, 3), uint8 RGB
    >>> result.classes.shape, result.classes.dtype
    ((480, 640), dtype('uint8'))
    >>> result.colours.shape
    (480, 640, 3)
    >>> unsure = result.uncertainty > 0.5  # predictive entropy: 0 is sure, 1 undecided
    >>> unsure.shape
    (480, 640)

    Args:
        path: a file that this project has written; nothing else is read.
        device: auto, cuda or cpu.
        windows: extent and step in pixels of square windows that slide over the (scaled) image;
            None for the image as a whole.
        batch: windows of an image in a forward pass.
        scale: the network sees an image at so many times its size; None: with as many pixels as
            the target's images had in training where they were resized (images.target_size), else
            as it is.
        flip: average with the mirrored image.
        passes: Monte-Carlo passes of the uncertainty.

    Raises ValueError, one line, for an option that is not allowed and a file that does not fit.
    """
    from pathlib import Path

    from ssda.engine.labelling import Options, load_labeller
    from ssda.params import square_windows
    from ssda.sections import validate

    options = {
        "device": device,
        "windows": square_windows(windows, "windows"),
        "batch": batch,
        "scale": scale,
        "flip": flip,
        "passes": passes,
    }
    return load_labeller(Path(path), validate(Options, options, "options"))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ssda")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
