"""The demo from its drawing to its scores, in a copy of the working tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.gpu.results import RUN, guarded, put
from benchmarks.gpu.shared import SMALL
from ssda.sections import read_yaml, set_values

CODE = ("ssda", "pipeline", "demo", "dvc.yaml", "params.yaml")
STAGES = ("demo.scenes", "inventory", "convert", "pretrain", "adapt", "evaluate")
TIMED = ("pretrain", "adapt", "evaluate")
LITTLE: dict[str, Any] = {
    "images.crop": [64, 32],
    "sampling.min_pixels": 10,
    "model.channels": 8,
    "pretrain.iterations": 2,
    "pretrain.batch_size": 2,
    "adapt.iterations": 2,
    "adapt.batch_size": 2,
    "evaluate.pictures": 1,
}
"""Of a rehearsal, as the number of scenes below."""
SCENES = {"game": 6, "city": {"train": 4, "val": 2, "test": 2}}


def copy_tree(folder: Path) -> None:
    """The code and the parameters of the default run, nothing of what they made before."""
    for name in CODE:
        if Path(name).is_dir():
            ignored = shutil.ignore_patterns("raw", "__pycache__")
            shutil.copytree(name, folder / name, ignore=ignored)
        else:
            shutil.copy(name, folder / name)
    if SMALL:
        change(folder / "params.yaml", LITTLE)
        scenes = {f"scenes.{name}": value for name, value in SCENES.items()}
        change(folder / "demo/params.yaml", scenes)


def change(path: Path, changes: dict[str, Any]) -> None:
    """Change dotted keys of a YAML."""
    values = set_values(read_yaml(path), changes)
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def events(folder: Path) -> Iterator[tuple[str, str]]:
    """(stage, what it says), line by line, of `dvc repro`; of the stages one by one without DVC.

    Raises RuntimeError where a stage ends with an error.
    """
    inner = {"DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {name: value for name, value in os.environ.items() if name not in inner}
    env["PATH"] = path
    commands = {
        name: [
            "-m",
            name if "." in name else f"pipeline.{name}",
            *(["game"] * (name == "inventory")),
        ]
        for name in STAGES
    }
    if find_spec("dvc"):
        commands = {"init": ["-m", "dvc", "init", "--no-scm", "-q"], "dvc": ["-m", "dvc", "repro"]}
    for stage, arguments in commands.items():
        yield stage, ""
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("Running stage"):
                stage = line.split("'")[1].split(":")[-1].split("@")[0]
            yield stage, line
        if process.wait():
            raise RuntimeError(f"{stage} ended with exit code {process.returncode}")


def measure(folder: Path) -> None:
    """Seconds of each stage from its start to the next, and the scores."""
    copy_tree(folder)
    seconds: dict[str, float] = {}
    said: dict[str, str] = {}
    started = time.perf_counter()
    for stage, line in events(folder):
        seconds.setdefault(stage, time.perf_counter() - started)
        if " s a step, " in line and "left" not in line:
            said[stage] = line.strip()
    _, *starts = seconds.values()
    ends = [*starts, time.perf_counter() - started]
    taken = {stage: end - seconds[stage] for stage, end in zip(seconds, ends, strict=True)}
    for stage, value in taken.items():
        put(f"stage {stage}", value, "s", said.get(stage, ""))
    how = "dvc repro" if find_spec("dvc") else "stages one by one: DVC is not here"
    put(RUN, sum(taken[stage] for stage in TIMED), "s", f"{', '.join(TIMED)}; {how}")
    scores = json.loads((folder / "metrics/evaluate.json").read_text())
    for name in ("source_only", "reestimated", "adapted"):
        put(f"mIoU, {name.replace('_', ' ')}", float(scores[name]["miou"]), "%")


def main() -> None:
    """In a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        guarded(RUN, measure, Path(folder))


if __name__ == "__main__":
    main()
