"""A network as an MLflow model: `mlflow.pyfunc.load_model("models:/NAME@adapted")`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

from ssda import serving


def save_model(network: Path, folder: Path) -> None:
    """Write a network's file as an MLflow model: what it takes and gives, an example, no pickle."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    classes = TensorSpec(np.dtype(np.uint8), (-1, -1, -1))
    pyfunc.save_model(
        folder,
        loader_module=serving.__name__,
        data_path=str(network),
        signature=ModelSignature(Schema([images]), Schema([classes])),
        input_example=np.zeros((1, 32, 32, 3), np.uint8),
        pip_requirements=[f"ssda[pipeline]=={version('ssda')}"],
    )
