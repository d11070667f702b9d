"""Which mechanisms pay? Variants of the method x random states x targets.

Every finished run is a line of a JSON-lines file, which is replaced as a whole; starting again
runs only what is missing. A line belongs to a hash of the parameters and the data: a run of other
ones replaces it. Tune by the validation splits; the test splits are for the report.

    python -m research.ablation --setting short --targets city camvid --states 0 1 2 --jobs 2
    python -m research.summary

On a GPU the runs share the card, each in a process of its own: --jobs 8 --workers 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import torch
from filelock import FileLock

from pipeline.overlays import overlay_changes
from research.controls import balanced
from research.label_free import label_free_indicators
from research.targets import FOLDER, TARGETS, Splits, parameters, splits_of
from research.variants import EVERY, SETTINGS, VARIANTS, Variant
from ssda.datasets.index import Index, class_frequencies
from ssda.engine.adapting import adapt_steps, start_networks
from ssda.engine.checkpoints import load_network, save_network
from ssda.engine.device import pick_device, place, set_up
from ssda.engine.evaluation import score
from ssda.engine.metrics import intersection_over_union, mean_iou
from ssda.engine.pretraining import imagenet_network, pretrain_steps
from ssda.engine.statistics import use_target_statistics
from ssda.engine.training import StepRecord
from ssda.files import write_text
from ssda.labels import LabelSpace
from ssda.method.adaptation import Networks
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from ssda.sections import changed

RUNS = Path("research/results/ablation.jsonl")


@dataclass(frozen=True)
class Score:
    """MIoU and the IoU of each class, in per cent; None: a class that never occurs."""

    miou: float
    iou: tuple[float | None, ...]


@dataclass(frozen=True)
class Result:
    """A finished run: a line of the file."""

    setting: str
    target: str
    variant: str
    random_state: int
    key: str
    """Hash of parameters and data."""
    commit: str
    seconds: float
    """Of training after the shared pretraining, and of scoring."""
    validation: Score | None
    test: Score
    indicators: dict[str, float]
    """Label-free."""

    @property
    def address(self) -> tuple[str, str, str, int]:
        """Which run it is; a newer one takes its place."""
        return self.setting, self.target, self.variant, self.random_state


@dataclass(frozen=True)
class Job:
    """A run that is to be done."""

    setting: str
    target: str
    variant: str
    random_state: int
    key: str
    pretraining: Params
    params: Params

    @property
    def address(self) -> tuple[str, str, str, int]:
        """As its result's."""
        return self.setting, self.target, self.variant, self.random_state


Task = tuple[Job, Splits, int]
"""A run, its data, its threads."""


def main() -> None:
    """Run what is missing, a line each."""
    parser = options(__doc__, RUNS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    run(arguments, arguments.variants)


def options(text: str | None, out: Path) -> argparse.ArgumentParser:
    """Setting, random states and targets, how many runs at a time, where results go."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    parser.add_argument("--states", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["city"])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time that share the cores")
    parser.add_argument("--threads", type=int, help="of a run; default: cores / jobs")
    parser.add_argument("--workers", type=int, default=0, help="processes that load, of each set")
    parser.add_argument("--out", type=Path, default=out)
    return parser


def run(arguments: argparse.Namespace, variants: Sequence[str]) -> None:
    """Run what is missing of some variants, a line each."""
    signal.signal(signal.SIGTERM, _leave)
    data = {target: splits_of(target) for target in arguments.targets}
    jobs = [
        job(arguments.setting, target, name, state, data[target].digest, arguments.workers)
        for state in arguments.states
        for target in arguments.targets
        for name in variants
    ]
    done = {(result.address, result.key) for result in read_results(arguments.out)}
    missing = [job for job in jobs if (job.address, job.key) not in done]
    print(f"{len(jobs) - len(missing)} runs are there, {len(missing)} to do", flush=True)
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // arguments.jobs)
    tasks = [(job, data[job.target], threads) for job in missing]
    with closing(finished(tasks, arguments.jobs)) as results:
        for result in results:
            add_result(arguments.out, result)
            validation = f"{result.validation.miou:5.1f}" if result.validation else "    -"
            print(
                f"{result.target:18} {result.variant:24} {result.random_state:3}  "
                f"validation {validation}  test {result.test.miou:5.1f}  {result.seconds:5.0f} s",
                flush=True,
            )


def finished(tasks: Sequence[Task], jobs: int) -> Generator[Result]:
    """The results of runs, each in a process of its own, so many at a time, as they end.

    Forked: the runs keep this command's name, by which they can be found and paused. None of them
    outlives it. RuntimeError where one ends without a result.
    """
    cv2.setNumThreads(1)  # a forked process that found threads of OpenCV gone would wait for ever
    context = multiprocessing.get_context("fork")
    left = [*reversed(tasks)]
    running: dict[Connection, ForkProcess] = {}
    try:
        while left or running:
            while left and len(running) < jobs:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_send, args=(sender, left.pop()))
                process.start()
                sender.close()
                running[receiver] = process
            for receiver in wait([*running]):
                assert isinstance(receiver, Connection)
                process = running[receiver]
                try:
                    result = receiver.recv()
                except EOFError as error:
                    process.join()
                    raise RuntimeError(f"a run ended with exit code {process.exitcode}") from error
                del running[receiver]
                process.join()
                yield result
    finally:
        for process in running.values():
            process.terminate()


def _send(sender: Connection, task: Task) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the command's own handler is not for a run
    sender.send(_run(*task))


def job(
    setting: str, target: str, name: str, random_state: int, digest: str, workers: int = 0
) -> Job:
    """The run of a variant in a setting."""
    variant = EVERY[name]
    said = overlay_changes(variant.overlay) if variant.overlay else {}
    said |= variant.changes
    early = {k: v for k, v in said.items() if k.split(".")[0] in EARLY}
    runtime = {"runtime.workers": workers}
    pretraining = parameters(early | runtime, target, random_state)
    changes = dict(SETTINGS[setting]) | said | runtime
    params = parameters(changes, target, random_state)
    key = run_key(variant, pretraining, params, digest)
    return Job(setting, target, name, random_state, key, pretraining, params)


def run_key(variant: Variant, pretraining: Params, params: Params, digest: str) -> str:
    """Hash of all that a run depends on but the code."""
    facts = [variant.training, digest, _facts(pretraining, PRETRAINING)]
    if variant.training == "adapt":
        facts.append(_facts(params, (*PRETRAINING, "adapt")))
        if variant.balance != "method":
            facts.append(variant.balance)
    elif variant.training in ("source", "labelled", "then_labelled"):
        facts += [_facts(params, PRETRAINING), params.adapt.iterations]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


EARLY = ("source_augmentation", "model", "pretrain")
"""Sections of which a variant's changes hold for pretraining too."""
PRETRAINING = ("random_state", "images", "sampling", "source_augmentation", "model", "pretrain")


AS_BEFORE = (".pyramid 'blocks'", ".cells 'things'")
"""Options added later, at values that are not off but change nothing."""


def _facts(params: Params, sections: Iterable[str]) -> list[str]:
    """What the sections say, but for what is off: an option added later, off, changes nothing."""
    values = params.model_dump()

    def flat(prefix: str, value: Any) -> list[str]:
        if isinstance(value, dict):
            return [line for key in sorted(value) for line in flat(f"{prefix}.{key}", value[key])]
        return [f"{prefix} {value!r}"] if value else []

    return [
        line
        for section in sections
        for line in flat(section, values[section])
        if not line.split()[0].endswith("validate_every") and not line.endswith(AS_BEFORE)
    ]


def pretrained_path(params: Params, source_digest: str) -> Path:
    """Where the pretrained network lies that variants and targets of one source share."""
    facts = json.dumps([source_digest, _facts(params, PRETRAINING)])
    return FOLDER / "pretrained" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"


def network_path(setting: str, target: str, variant: str, random_state: int) -> Path:
    """Where a run leaves its network, for the diagnostics."""
    name = f"{setting}-{target}-{variant.replace('/', '-')}-{random_state}"
    return FOLDER / "networks" / f"{name}.safetensors"


def _leave(signal_number: int, frame: FrameType | None) -> None:
    sys.exit(1)  # on the way out the runs are ended


def pretrained(params: Params, data: Splits) -> Segmenter:
    """The pretrained network that variants share; whoever needs it first trains it."""
    path = pretrained_path(params, data.source_digest)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            network = trained(
                imagenet(params, data.space), data.source, params, params.pretrain.iterations
            )
            save_network(path, network, params.model, data.space)
    return load_network(path)[0]


def _run(job: Job, data: Splits, threads: int) -> Result:
    """Train, score and describe one variant of one random state."""
    torch.set_num_threads(threads)
    params = job.params
    training = EVERY[job.variant].training
    started = time.monotonic()
    steps = params.pretrain.iterations + params.adapt.iterations
    if training == "source":
        network = trained(imagenet(params, data.space), data.source, params, steps)
    elif training == "labelled":
        network = trained(imagenet(params, data.space), data.labelled, params, steps)
    else:
        network = placed(pretrained(job.pretraining, data), params)
        if training == "then_labelled":
            trained(network, data.labelled, params, params.adapt.iterations)
        elif training == "statistics":
            use_target_statistics(network, data.target, params)
        elif training == "adapt":
            networks = start_networks(network, data.target, params)
            for _ in variant_steps(EVERY[job.variant], networks, data, params):
                pass
            network = networks.teacher
    network.eval()
    path = network_path(job.setting, job.target, job.variant, job.random_state)
    save_network(path, network, params.model, data.space)
    frequencies = torch.from_numpy(class_frequencies([data.source])).float()
    indicators = label_free_indicators(network, data.target, frequencies, params)
    validation = scored(network, data.validation, params)
    test = scored(network, data.report, params)
    return Result(
        job.setting,
        job.target,
        job.variant,
        job.random_state,
        job.key,
        _commit(),
        round(time.monotonic() - started, 1),
        validation,
        test,
        {name: round(value, 5) for name, value in indicators.items()},
    )


def variant_steps(
    variant: Variant, networks: Networks, data: Splits, params: Params
) -> Iterator[StepRecord]:
    """`adapt_steps`, seeds chosen as the variant does."""
    with balanced(variant.balance):
        yield from adapt_steps(networks, [data.source], data.target, params, data.space)


def imagenet(params: Params, space: LabelSpace) -> Segmenter:
    """The network that pretraining starts from."""
    return placed(imagenet_network(params, space.num_classes), params)


def placed(network: Segmenter, params: Params) -> Segmenter:
    """The network on its device, which computes as params say."""
    device = pick_device(params.runtime.device)
    set_up(device, params.compute)
    return place(network, device, params.compute)


def trained(network: Segmenter, index: Index, params: Params, steps: int) -> Segmenter:
    """The network, trained on a labelled split for so many steps."""
    params = changed(params, {"pretrain.iterations": steps})
    for _ in pretrain_steps(network, [index], params):
        pass
    return network


def scored(network: Segmenter, index: Index, params: Params) -> Score:
    """The network's score on a labelled split."""
    (confusion,) = score([network], index, params)
    values = [round(value, 2) for value in intersection_over_union(confusion).tolist()]
    iou = tuple(None if math.isnan(value) else value for value in values)
    return Score(round(mean_iou(confusion) or 0.0, 3), iou)


def read_results(path: Path) -> list[Result]:
    """The runs in a file; none where there is no file."""
    if not path.is_file():
        return []
    results: list[Result] = []
    for line in path.read_text().splitlines():
        values = json.loads(line)
        for name in ("validation", "test"):
            if values[name] is not None:
                values[name] = Score(values[name]["miou"], tuple(values[name]["iou"]))
        results.append(Result(**values))
    return results


def add_result(path: Path, result: Result) -> None:
    """Add a run to a file that other processes may add to at the same time."""
    with FileLock(FOLDER / "results.lock"):
        write_results(path, [*read_results(path), result])


def write_results(path: Path, results: Iterable[Result]) -> None:
    """A line a run, sorted; of two runs at one address the later one stays."""
    latest = {result.address: result for result in results}
    lines = [json.dumps(asdict(latest[address])) for address in sorted(latest)]
    write_text(path, "".join(line + "\n" for line in lines))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
