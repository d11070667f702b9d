"""The targets that variants are compared on: drawn cities, and photographs where they are here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from demo.scenes import city, write_cityscapes, write_gta
from pipeline.convert import convert_raw
from pipeline.inventory import count_files
from pipeline.overlays import load_preset
from pipeline.splits import RawSplit, raw_splits
from ssda.datasets.index import Index, read_index
from ssda.files import write_json
from ssda.labels import LabelSpace
from ssda.params import Params, load_params
from ssda.sections import read_yaml, set_values, validate

FOLDER = Path(".ssda/research")
SCENES = Path("demo/params.yaml")


@dataclass(frozen=True)
class City:
    """A drawn city: how unlike the game it is, and how often its things are drawn."""

    difficulty: float = 1.0
    frequencies: Mapping[str, float] = field(default_factory=dict[str, float])


CITIES = {
    "city": City(),
    "easier": City(difficulty=0.5),
    "harder": City(difficulty=1.4),
    "other_frequencies": City(
        frequencies={"bicycle": 8, "truck": 5, "bus": 5, "train": 0, "road": 0.6}
    ),
}
PHOTOGRAPHS = ("camvid",)
"""Presets of real sets."""
TARGETS = (*CITIES, *PHOTOGRAPHS)


@dataclass(frozen=True)
class Splits:
    """Converted splits.

    Attributes:
        source: the game, labelled.
        target: the target's training images, without labels.
        labelled: the same with labels: for the oracle and for diagnostics, never for adaptation.
        validation: to tune on.
        report: to report on.
        digest: of what the labelled images are: names, sizes, pixels of each class.
        source_digest: of those of the source, which pretraining sees alone.
    """

    source: Index
    target: Index
    labelled: Index
    validation: Index
    report: Index
    digest: str
    source_digest: str

    @property
    def space(self) -> LabelSpace:
        """The classes of all of them."""
        return self.source.space


def splits_of(target: str) -> Splits:
    """Draw and convert what is not there yet, or was made by other code; then read it.

    Raises ValueError for a real set that is not here.
    """
    params = parameters({}, target, 0)
    raw = raw_splits(params)
    raw.append(replace(raw[1], name="target/labelled", with_labels=True))
    scenes: dict[str, Any] = read_yaml(SCENES)["scenes"]
    game = {"scenes": scenes["game"], "code": _drawing_code()}
    _unless_done(_game(), game, lambda: write_gta(_game() / "raw", scenes["game"]))
    folder = _folder(target)
    if drawn := CITIES.get(target):
        facts = game | {
            "scenes": scenes["city"],
            "difficulty": drawn.difficulty,
            "frequencies": dict(drawn.frequencies),
        }
        look = city(drawn.difficulty, drawn.frequencies)
        _unless_done(
            folder, facts, lambda: write_cityscapes(folder / "raw", scenes["city"], look=look)
        )
    converted = folder / "converted"
    facts = {split.name: count_files(split) for split in raw}
    _unless_done(converted, facts, lambda: _convert(raw, converted))
    source, unlabelled, validation, report, labelled = (
        read_index(converted / split.name) for split in raw
    )
    digests = (_digest(source, labelled, validation, report), _digest(source))
    return Splits(source, unlabelled, labelled, validation, report, *digests)


def parameters(changes: dict[str, Any], target: str, random_state: int) -> Params:
    """The target's parameters, params.yaml for a city, with changes (dotted key: value)."""
    drawn = target in CITIES
    params = load_params() if drawn else load_preset(target)
    fixed = {
        "sources.game.root": str(_game() / "raw"),
        "random_state": random_state,
        "runtime.workers": 0,
    }
    if drawn:
        fixed["target.root"] = str(_folder(target) / "raw")
    values = params.model_dump(mode="json", by_alias=True)
    return validate(Params, set_values(values, fixed | changes), target)


def _digest(*indices: Index) -> str:
    content = [
        (record.name, record.bytes, record.class_pixels)
        for index in indices
        for record in index.records
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _game() -> Path:
    return FOLDER / "targets/game"


def _folder(target: str) -> Path:
    return FOLDER / "targets" / target


def _unless_done(folder: Path, facts: dict[str, Any], work: Callable[[], None]) -> None:
    """Do the work that fills a folder, unless it was done with the same facts."""
    marker = folder / "made.json"
    if not marker.is_file() or json.loads(marker.read_text()) != facts:
        work()
        write_json(marker, facts)


def _convert(splits: list[RawSplit], folder: Path) -> None:
    for raw in splits:
        convert_raw(raw, folder / raw.name)


def _drawing_code() -> str:
    files = sorted(Path("demo").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
