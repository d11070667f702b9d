"""A network as an MLflow model: `mlflow.pyfunc.load_model("models:/NAME@adapted").predict(images)`.

The MLmodel file beside a network's safetensors file names this module, and MLflow imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

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
    import ssda

    return Predictor(ssda.load(path))


def save_model(network: Path, folder: Path) -> None:
    """Write a network's file as an MLflow model: what it takes and gives, an example, no pickle."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    classes = TensorSpec(np.dtype(np.uint8), (-1, -1, -1))
    pyfunc.save_model(
        folder,
        loader_module=__name__,
        data_path=str(network),
        signature=ModelSignature(Schema([images]), Schema([classes])),
        input_example=np.zeros((1, 32, 32, 3), np.uint8),
        pip_requirements=[f"ssda[pipeline]=={version('ssda')}"],
    )
