"""The demo's streets at any difficulty, drawn and converted below .ssda/benchmarks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo.scenes import write_cityscapes, write_gta
from pipeline.splits import raw_splits
from ssda.datasets.conversion import convert_split
from ssda.datasets.index import Index, read_index
from ssda.files import write_json
from ssda.params import Params
from ssda.sections import read_yaml, validate

FOLDER = Path(".ssda/benchmarks")


@dataclass(frozen=True)
class Streets:
    """Converted splits.

    Attributes:
        source: the game, labelled.
        target: the city's training streets, without labels.
        labelled: the same with labels: for the oracle and for diagnostics, never for adaptation.
        validation: to tune on.
        report: to report on.
        digest: of what the labelled images are: names, sizes, pixels of each class.
    """

    source: Index
    target: Index
    labelled: Index
    validation: Index
    report: Index
    digest: str


def streets(difficulty: float) -> Streets:
    """Draw and convert what is not there yet, or was drawn by other code; then read it."""
    folder = FOLDER / f"streets-{difficulty:g}"
    scenes: dict[str, Any] = read_yaml(Path("demo/params.yaml"))["scenes"]
    drawn = {**scenes, "difficulty": difficulty, "code": _drawing_code()}
    marker = folder / "drawn.json"
    params = parameters({}, difficulty, 0)
    splits = raw_splits(params)
    splits.append(replace(splits[1], name="target/labelled", with_labels=True))
    if not marker.is_file() or json.loads(marker.read_text()) != drawn:
        write_gta(folder / "raw/game", scenes["game"])
        write_cityscapes(folder / "raw/city", scenes["city"], difficulty=difficulty)
        for raw in splits:
            out = folder / raw.name
            convert_split(
                raw.layout,
                raw.root,
                raw.split,
                out,
                space=raw.space,
                with_labels=raw.with_labels,
            )
        write_json(marker, drawn)
    source, target, validation, report, labelled = (read_index(folder / raw.name) for raw in splits)
    content = [
        (record.name, record.bytes, record.class_pixels)
        for index in (source, labelled, validation, report)
        for record in index.records
    ]
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    return Streets(source, target, labelled, validation, report, digest)


def parameters(changes: dict[str, Any], difficulty: float, random_state: int) -> Params:
    """params.yaml with changes (dotted key: value), reading the streets of a difficulty."""
    values = read_yaml(Path("params.yaml"))
    raw = FOLDER / f"streets-{difficulty:g}/raw"
    fixed = {
        "sources.game.root": str(raw / "game"),
        "target.root": str(raw / "city"),
        "random_state": random_state,
        "runtime.workers": 0,
    }
    return validate(Params, set_values(values, fixed | changes), "params.yaml")


def set_values(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested values, changed in place at dotted keys."""
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return values


def _drawing_code() -> str:
    files = sorted(Path("demo").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
