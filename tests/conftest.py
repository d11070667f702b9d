from pathlib import Path
from typing import Any

import pytest
import torch

from ssda.params import Model, Params
from ssda.sections import read_yaml, validate

ROOT = Path(__file__).resolve().parents[1]


def set_values(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Nested values with overrides of the form {"adapt.trucrf.radius": 3}."""
    for key, value in overrides.items():
        section = values
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    return values


def make_params(overrides: dict[str, Any] | None = None) -> Params:
    """The default parameters with overrides."""
    values = set_values(read_yaml(ROOT / "params.yaml"), overrides or {})
    return validate(Params, values, "params.yaml")


def make_model(overrides: dict[str, Any] | None = None) -> Model:
    """The default network's parameters with overrides."""
    return make_params(overrides).model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two test processes share two cores; more threads would only wait for each other."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))
