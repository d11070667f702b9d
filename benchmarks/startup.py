"""What does it cost to start: a command line, a stage, a `dvc repro` that has nothing to do?

Everything runs in a copy of the repository in a temporary folder, on made-up files. The bars are
held against processor time, in which other processes do not count.

    python -m benchmarks.startup
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.made_up import convert_game, write_game
from benchmarks.measure import Answer, command
from pipeline.paths import SOURCES, TARGET_VALIDATION
from ssda.sections import read_yaml, set_values

ROOT = Path(__file__).resolve().parents[1]
DEMO = {"game": 400, "train": 300, "val": 60, "test": 100}
GTA = {"game": 24966, "train": 2975, "val": 250, "test": 250}


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """Processor seconds and seconds of a command in a folder."""
    local = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{local}{os.pathsep}{os.environ['PATH']}"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}")
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def repeated(question: str, command: list[str], folder: Path, bar: float, times: int) -> Answer:
    """Median processor seconds of a command, after one run that does not count."""
    run(command, folder)
    runs = [run(command, folder) for _ in range(times)]
    seconds = {"processor": sorted(p for p, _ in runs), "wall": sorted(w for _, w in runs)}
    return Answer(question, statistics.median(seconds["processor"]), "s", bar, seconds=seconds)


def copy_repository(folder: Path, changes: dict[str, Any]) -> Path:
    """The repository's files in a new git repository, with other values in params.yaml."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    for name in files.stdout.decode().splitlines():
        if (ROOT / name).is_file() and not name.endswith("dvc.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())
    yaml.dump(set_values(params, changes), folder / "params.yaml")
    run(["git", "init", "--quiet"], folder)
    return folder


def fill(folder: Path, counts: dict[str, int], game: Path, city: Path) -> None:
    """Made-up raw files, and outputs for every stage, taken by DVC as up to date."""
    _many(game / "images", "{:05d}.png", counts["game"])
    _many(game / "labels", "{:05d}.png", counts["game"])
    for split in ("train", "val", "test"):
        _many(city / f"leftImg8bit/{split}/a", "a_{:05d}_leftImg8bit.png", counts[split])
        _many(city / f"gtFine/{split}/a", "a_{:05d}_gtFine_labelIds.png", counts[split])
    run([sys.executable, "-m", "pipeline.inventory", "game"], folder)
    stages: dict[str, dict[str, Any]] = read_yaml(folder / "dvc.yaml")["stages"]
    for stage in stages.values():
        for out in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
            path = folder / (out if isinstance(out, str) else next(iter(out)))
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("{}")
            else:
                _many(path, "some{}", 3)
    _many(folder / SOURCES / "game/labels", "{:05d}.png", counts["game"])
    names = [f"{name}@game" if "foreach" in stage else name for name, stage in stages.items()]
    if game.is_relative_to(folder):
        names.append("demo/dvc.yaml:scenes")
    run(["dvc", "commit", "--force", *names], folder)


def _many(folder: Path, name: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / name.format(i)).write_bytes(b"%d" % i)


def help_of_a_stage(times: int) -> Answer:
    """The command line alone."""
    command = [sys.executable, "-m", "pipeline.adapt", "--help"]
    return repeated("`python -m pipeline.adapt --help`", command, ROOT, 1.0, times)


def stage_with_one_step(times: int) -> Answer:
    """`dvc repro` of one stage whose work is one step on one image, and one image to score."""
    settings: dict[str, int] = {"iterations": 1, "batch_size": 1, "validate_every": 0}
    changes: dict[str, Any] = {f"pretrain.{name}": value for name, value in settings.items()}
    changes |= {"sampling.min_pixels": 1, "runtime.workers": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = copy_repository(Path(name), changes)
        write_game(folder / "game", 1, (272, 144))
        for split in (SOURCES / "game", TARGET_VALIDATION):
            convert_game(folder / "game", folder / split)
        command = ["dvc", "repro", "--single-item", "--force", "pretrain"]
        question = "`dvc repro` of the stage `pretrain` with a single step: what is around the work"
        note = "imports alone: torch, torchvision, timm 2.7 s, MLflow 1.0 s, matplotlib 0.4 s"
        return replace(repeated(question, command, folder, 6.0, times), note=note)


def nothing_to_do(counts: dict[str, int], bar: float, times: int) -> Answer:
    """`dvc repro` where nothing has changed, in the demo or with raw data elsewhere."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as raw:
        roots = {"sources.game.root": f"{raw}/game", "target.root": f"{raw}/city"}
        folder = copy_repository(Path(name), {} if counts is DEMO else roots)
        place = folder / "demo/raw" if counts is DEMO else Path(raw)
        fill(folder, counts, place / "game", place / "city")
        question = f"`dvc repro` with nothing to do, {counts['game']} source images"
        return repeated(question, ["dvc", "repro"], folder, bar, times)


def answers(times: int) -> list[Answer]:
    """All questions."""
    return [
        help_of_a_stage(times),
        stage_with_one_step(times),
        nothing_to_do(DEMO, 2.0, times),
        nothing_to_do(GTA, 10.0, times),
    ]


if __name__ == "__main__":
    command("startup", __doc__, answers, times=3)
