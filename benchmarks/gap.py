"""How wide is the demo's gap, and how much of it does adaptation close?

For each random state, on one split of the city: source-only as pretrained; with batch-normalisation
statistics re-estimated on the target; adapted; source-only trained for pretrain + adapt steps; and
the oracle, the same network trained for as many steps on *labelled* city images. The oracle is the
one place outside evaluation where target labels are read.

    python -m benchmarks.gap --states 0 1 2 --split report --jobs 2
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import describe_machine
from pipeline.inventory import raw_splits
from ssda.datasets.conversion import convert_split
from ssda.datasets.index import Index, read_index
from ssda.datasets.loading import EvaluationSamples
from ssda.engine.adapting import adapt_steps, start_networks, use_target_statistics
from ssda.engine.device import pick_device
from ssda.engine.evaluation import score
from ssda.engine.metrics import intersection_over_union, mean_iou
from ssda.engine.pretraining import imagenet_network, pretrain_steps
from ssda.files import write_json
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Params, read_yaml, validate

VARIANTS = ("source_only", "reestimated", "adapted", "source_longer", "oracle")
JOBS = ("adapted", "source_longer", "oracle")
"""What is trained apart; the first job gives the first three variants."""
CONVERTED = Path(".ssda/benchmarks/converted")


@dataclass(frozen=True)
class Result:
    """One network's score: mIoU in per cent, IoU of each class, seconds it took to train."""

    variant: str
    random_state: int
    miou: float
    iou: tuple[float | None, ...]
    seconds: float


def main() -> None:
    """Run all variants, print a line each and the summary, write all of it to a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--states", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("validation", "report"), default="validation")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cores")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gap.json"))
    arguments = parser.parse_args()
    params = parameters(arguments.set, 0)
    splits = raw_splits(params)
    splits.append(replace(splits[1], name="target/labelled", with_labels=True))
    for raw in splits:
        out = CONVERTED / raw.name
        convert_split(raw.layout, raw.root, raw.split, out, with_labels=raw.with_labels)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    results: list[Result] = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        pending = [
            pool.submit(run, parameters(arguments.set, state), arguments.split, job, threads)
            for job in JOBS
            for state in arguments.states
        ]
        for done in as_completed(pending):
            for result in done.result():
                results.append(result)
                print(f"{result.variant:14} {result.random_state}  {result.miou:5.1f}", flush=True)
            write_json(arguments.out, content(results, arguments.split, arguments.set))
    print("\n" + table(results))


def parameters(overrides: list[str], random_state: int) -> Params:
    """params.yaml with overrides of the form adapt.trucrf.radius=3."""
    values: Any = read_yaml(Path("params.yaml"))
    values["random_state"] = random_state
    for override in overrides:
        key, _, text = override.partition("=")
        section = values
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        try:
            section[last] = json.loads(text)
        except json.JSONDecodeError:
            section[last] = text
    return validate(Params, values, "params.yaml")


def run(params: Params, split: str, job: str, threads: int) -> list[Result]:
    """Train and score one job's variants of one random state."""
    torch.set_num_threads(threads)
    device = pick_device(params.runtime.device)
    source, target = read_index(CONVERTED / "source/train"), read_index(CONVERTED / "target/train")
    judged = EvaluationSamples(read_index(CONVERTED / "target" / split), params.images.target_size)
    steps = params.pretrain.iterations + params.adapt.iterations
    started = time.monotonic()

    def result(variant: str, network: Segmenter) -> Result:
        seconds = time.monotonic() - started
        confusion = score(
            network, judged, CITYSCAPES.num_classes, params.runtime.evaluation_batch_size
        )
        iou = (round(value, 2) for value in intersection_over_union(confusion).tolist())
        return Result(
            variant,
            params.random_state,
            round(mean_iou(confusion) or 0.0, 3),
            tuple(None if math.isnan(value) else value for value in iou),
            round(seconds, 1),
        )

    if job == "oracle":
        labelled = read_index(CONVERTED / "target/labelled")
        return [result(job, trained(params, labelled, device, steps))]
    if job == "source_longer":
        return [result(job, trained(params, source, device, steps))]
    network = trained(params, source, device, params.pretrain.iterations)
    results = [result("source_only", network)]
    reestimated = copy.deepcopy(network)
    use_target_statistics(reestimated, target, params)
    results.append(result("reestimated", reestimated))
    networks = start_networks(network, target, params)
    for _ in adapt_steps(networks, source, target, params, CITYSCAPES):
        pass
    return [*results, result("adapted", networks.teacher)]


def trained(params: Params, index: Index, device: torch.device, steps: int) -> Segmenter:
    """A network trained on a labelled split for so many steps."""
    pretrain = params.pretrain.model_copy(update={"iterations": steps})
    params = params.model_copy(update={"pretrain": pretrain})
    network = imagenet_network(params, CITYSCAPES.num_classes).to(device)
    for _ in pretrain_steps(network, index, params):
        pass
    return network


def content(results: list[Result], split: str, overrides: list[str]) -> dict[str, Any]:
    """What the JSON file says."""
    return {
        "question": "how wide is the gap, and how much of it does adaptation close",
        "machine": describe_machine(),
        "split": split,
        "overrides": overrides,
        "miou": {
            variant: {
                "mean": round(statistics.mean(values), 2),
                "deviation": round(statistics.stdev(values), 2) if len(values) > 1 else None,
                "states": len(values),
            }
            for variant in VARIANTS
            if (values := [result.miou for result in results if result.variant == variant])
        },
        "runs": [asdict(result) for result in results],
    }


def table(results: list[Result]) -> str:
    """Mean and standard deviation over the random states, as Markdown."""
    summary = content(results, "", [])["miou"]
    lines = ["| network | mIoU | deviation | states |", "| --- | --- | --- | --- |"]
    for variant, values in summary.items():
        name = variant.replace("_", " ")
        lines.append(f"| {name} | {values['mean']} | {values['deviation']} | {values['states']} |")
    means = {variant: values["mean"] for variant, values in summary.items()}
    if means.keys() >= {"source_longer", "oracle"}:
        closed = (means["adapted"] - means["source_longer"]) / (
            means["oracle"] - means["source_longer"]
        )
        lines += ["", f"Gap closed, against source only of as many steps: {closed:.0%}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
