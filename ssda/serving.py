"""A network as `mlflow.pyfunc.load_model` gives it.

The MLmodel file beside a network's safetensors file names this module, and MLflow imports it: it is
here, and not in the pipeline, as it must be there wherever the package is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import ssda
from ssda.engine.labelling import Labeller


@dataclass(frozen=True)
class Predictor:
    """What `mlflow.pyfunc` wraps."""

    labeller: Labeller

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Train ids (N, H, W) uint8 of images (N, H, W, 3) uint8 RGB; `params` are MLflow's."""
        return np.stack([self.labeller.label(image).classes for image in images])


def _load_pyfunc(path: str) -> Predictor:  # pyright: ignore[reportUnusedFunction]
    """The predictor of a network's file; MLflow looks for a function of this name."""
    return Predictor(ssda.load(path))
