"""What does scoring cost beyond the network, and beyond the start?

Counting is timed alone; the stage runs in a process of its own, on made-up images.

python -m benchmarks.evaluation
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.made_up import convert_game, write_game
from benchmarks.measure import Answer, describe_machine, interleave, pick_clock, ratio, report
from benchmarks.usual import histogram_areas
from pipeline.paths import (
    ADAPTED,
    ADAPTED_SCORES,
    PRETRAINED,
    STUDENT,
    TARGET_REPORT,
    TARGET_TRAIN,
)
from ssda.engine.checkpoints import save_network
from ssda.engine.metrics import confusion_matrix
from ssda.files import write_json
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Params, load_params

ROOT = Path(__file__).resolve().parents[1]
PIXELS = (1024, 2048)


def compare_counting(rounds: int) -> Answer:
    """The confusion matrix of one large image against three histograms."""
    drawn = torch.Generator().manual_seed(0)
    target = torch.randint(0, 19, PIXELS, generator=drawn).byte()
    prediction = torch.where(torch.rand(PIXELS, generator=drawn) < 0.7, target, 0)
    target[:100] = 255
    ways = {
        "usual": lambda: histogram_areas(prediction, target, 19),
        "ours": lambda: confusion_matrix(prediction, target, num_classes=19),
    }
    matrix = confusion_matrix(prediction, target, num_classes=19)
    areas = histogram_areas(prediction, target, 19)
    for area, wanted in zip(areas, (matrix.diagonal(), matrix.sum(0), matrix.sum(1)), strict=True):
        assert torch.equal(area.long(), wanted)
    return ratio(
        f"confusion matrix of {PIXELS[1]} x {PIXELS[0]} pixels, against histograms",
        interleave(ways, rounds),
        ("usual", "ours"),
        "times as fast",
        bar=None,
        at_most=False,
    )


def share_in_network(params: Params) -> Answer:
    """The whole stage `evaluate` on images of the demo's number and size, in its own process."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "--stage"]
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), params)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        done = subprocess.run(
            command, cwd=name, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return Answer(
        "share of the demo's `evaluate` that the networks take, after the start",
        100.0 * facts["network"] / facts["stage"],
        "%",
        bar=80.0,
        at_most=False,
        note="reading, enlarging and counting images, the picture, MLflow",
        details={name: round(value, 2) for name, value in facts.items()},
    )


def prepare(folder: Path, params: Params, images: int = 300) -> None:
    """All that the stage reads: a target with a third for the report, networks, their scores."""
    game = write_game(folder / "game", images, (256, 128))
    for split in (TARGET_TRAIN, TARGET_REPORT):
        convert_game(game, folder / split)
    index = folder / TARGET_REPORT / "index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"records": content["records"][: images // 3]}))
    write_json(folder / ADAPTED_SCORES, {"adapt": {}})
    network = Segmenter(params.model, CITYSCAPES.num_classes)
    for path in (PRETRAINED, ADAPTED, STUDENT):
        save_network(folder / path, network, params.model, CITYSCAPES)


def run_stage() -> None:
    """Run `evaluate` here; prints seconds in the stage and in the networks."""
    clock = pick_clock()
    spent: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any) -> Any:
            started = clock()
            result = work(*arguments)
            spent.append(clock() - started)
            return result

        return timing

    Segmenter.predict = timed(Segmenter.predict)
    Segmenter.observe = timed(Segmenter.observe)
    import_module("pipeline.training.loop")  # what the stage would import
    from pipeline.evaluate import evaluate
    from pipeline.tracking.run import stage_run

    params = load_params(str(ROOT / "params.yaml"))
    with stage_run("adapt", params):
        pass  # an earlier stage has opened MLflow's data base
    entered = clock()
    evaluate(params)
    stage = clock() - entered
    print(json.dumps({"stage": stage, "network": sum(spent)}))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stage", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage()
        return
    machine = describe_machine()
    answers = [compare_counting(arguments.rounds), share_in_network(load_params())]
    report("evaluation", machine, answers)


if __name__ == "__main__":
    main()
