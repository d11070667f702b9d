"""How wide is the demo's gap, and how much of it does adaptation close?

Per random state, on one split of the city: source-only as pretrained; its batch-normalisation
statistics re-estimated on the target; adapted; source-only trained for pretrain + adapt steps;
and the oracle, the same network trained for as many steps on *labelled* city images. The oracle is
the one place outside evaluation where target labels are read.

    python -m benchmarks.gap --states 0 1 2 --split report
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.convert import convert
from pipeline.paths import CONVERTED
from ssda.datasets.conversion import convert_split
from ssda.datasets.index import Index, read_index
from ssda.datasets.layouts import load_layout
from ssda.datasets.loading import EvaluationSamples
from ssda.engine.adapting import adapt_steps, start_networks, use_target_statistics
from ssda.engine.device import pick_device
from ssda.engine.evaluation import score
from ssda.engine.metrics import intersection_over_union, mean_iou
from ssda.engine.pretraining import imagenet_network, pretrain_steps
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Params, read_yaml, validate

VARIANTS = ("source_only", "reestimated", "adapted", "source_longer", "oracle")


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
        section[last] = json.loads(text) if text[:1] in "[{-0123456789tfn" else text
    return validate(Params, values, "params.yaml")


def main() -> None:
    """Run the variants, print a line each and the summary, write all to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--states", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=("validation", "report"), default="validation")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gap.json"))
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for state in arguments.states:
        params = parameters(arguments.set, state)
        results += run_state(params, arguments.split, arguments.variants)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"split": arguments.split, "set": arguments.set, "runs": results}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    summarise(results, arguments.variants)


def run_state(params: Params, split: str, variants: list[str]) -> list[dict[str, Any]]:
    """All variants of one random state."""
    device = pick_device(params.runtime.device)
    convert(params)
    source = read_index(CONVERTED / "source" / "train")
    target = read_index(CONVERTED / "target" / "train")
    judged = read_index(CONVERTED / "target" / split)
    results: list[dict[str, Any]] = []

    def record(variant: str, network: Segmenter, started: float) -> None:
        samples = EvaluationSamples(judged, params.images.target_size)
        confusion = score(network, samples, CITYSCAPES.num_classes, params.evaluate.batch_size)
        classes = [round(v, 1) for v in intersection_over_union(confusion).nan_to_num(-1).tolist()]
        results.append(
            {
                "variant": variant,
                "random_state": params.random_state,
                "miou": mean_iou(confusion),
                "iou": classes,
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        print(json.dumps(results[-1]), flush=True)

    if {"source_only", "reestimated", "adapted"} & set(variants):
        started = time.monotonic()
        pretrained = trained(params, source, device, params.pretrain.iterations)
        record("source_only", pretrained, started)
        if "reestimated" in variants:
            network = copy.deepcopy(pretrained)
            use_target_statistics(network, target, params)
            record("reestimated", network, time.monotonic())
        if "adapted" in variants:
            started = time.monotonic()
            networks = start_networks(copy.deepcopy(pretrained), target, params)
            for step in adapt_steps(networks, source, target, params, CITYSCAPES):
                if step.step % 50 == 0:
                    print(
                        step.step, {k: round(v, 3) for k, v in step.scalars().items()}, flush=True
                    )
            record("adapted", networks.teacher, started)
    steps = params.pretrain.iterations + params.adapt.iterations
    if "source_longer" in variants:
        started = time.monotonic()
        record("source_longer", trained(params, source, device, steps), started)
    if "oracle" in variants:
        started = time.monotonic()
        record("oracle", trained(params, labelled_target(params), device, steps), started)
    return results


def trained(params: Params, index: Index, device: torch.device, steps: int) -> Segmenter:
    """A network trained on a labelled split for so many steps."""
    pretrain = params.pretrain.model_copy(update={"iterations": steps})
    params = params.model_copy(update={"pretrain": pretrain})
    network = imagenet_network(params, CITYSCAPES.num_classes).to(device)
    for _ in pretrain_steps(network, index, params, CITYSCAPES):
        pass
    return network


def labelled_target(params: Params) -> Index:
    """The target's train split with its labels, for the oracle."""
    folder = Path(".ssda/benchmarks/labelled_target")
    return convert_split(
        load_layout(params.target.layout),
        Path(params.target.root),
        params.target.train,
        folder,
        with_labels=True,
    )


def summarise(results: list[dict[str, Any]], variants: list[str]) -> None:
    """Mean and standard deviation over the random states."""
    for variant in variants:
        values = [r["miou"] for r in results if r["variant"] == variant]
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{variant:14} {statistics.mean(values):5.1f} +- {deviation:.1f}  ({len(values)})")


if __name__ == "__main__":
    main()
