"""A joint step of a preset with each of its switches the other way.

python -m benchmarks.gpu.switches PRESET
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from benchmarks.gpu.results import guarded, put
from benchmarks.gpu.shared import ON_CARD, SMALL, median_step, prepared, preset, seconds_left, steps
from ssda.params import Params
from ssda.sections import set_values, validate

SWITCHES: dict[str, Any] = {
    "compute.precision": "fp32",
    "compute.deterministic": True,
    "model.checkpointing": True,
    "adapt.losses.trucrf": 0.0,
    "adapt.losses.feature_distance": 0.0,
    "adapt.losses.mix": 0.0,
    "compute.compile": True,
}
"""Keys and their other values, in the order in which they are tried."""
COMPILING = 45
"""Seconds that must be left for torch.compile."""


def measure(what: str, params: Params, changes: dict[str, Any]) -> None:
    """Median milliseconds of a step with changes of the parameters, with its memory."""
    values = set_values(params.model_dump(mode="json", by_alias=True), changes)
    records = steps(prepared(validate(Params, values, what)))
    for _ in range(1 if SMALL else 6):
        next(records)
    if ON_CARD:
        torch.cuda.reset_peak_memory_stats()
    taken = median_step(records, 1 if SMALL else 12)
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if ON_CARD else ""
    put(what, taken, "ms", memory)


def main(name: str) -> None:
    """The preset as it is, then each switch alone."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism asks for
    params = preset(name)
    guarded("as it is", measure, "as it is", params, {})
    for key, value in SWITCHES.items():
        what = f"{key} = {value}"
        if key == "compute.compile" and (SMALL or seconds_left() < COMPILING):
            put(what, "SKIPPED", "", "a rehearsal" if SMALL else "no time left")
        else:
            guarded(what, measure, what, params, {key: value})


if __name__ == "__main__":
    guarded("switches", main, sys.argv[1])
