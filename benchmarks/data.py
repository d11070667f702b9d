"""How many samples a second does a core read, and does training wait for them?

python -m benchmarks.data
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image
from torchvision.io import decode_image

from benchmarks.made_up import convert_game, write_game
from benchmarks.measure import Answer, command, interleave
from benchmarks.step import create_setting, describe, made_up_task
from pipeline.overlays import load_preset
from ssda.datasets.index import Index
from ssda.datasets.loading import SourceSamples, TargetSamples, source_batches, target_batches
from ssda.engine.training import create_optimiser
from ssda.method.adaptation import joint_step
from ssda.params import Params, load_params
from ssda.sections import changed

Item = TypeVar("Item")
FULL = (1914, 1052)
ENLARGED = (2560, 1440)
"""Size of a GTA image, and what it is enlarged to for crops of 1024 x 1024."""
CORES = 16


def samples_of(index: Index, params: Params) -> tuple[SourceSamples, TargetSamples]:
    """Both sorts of samples, of one set."""
    return (
        SourceSamples([index], params.images, params.sampling, 0, "benchmark"),
        TargetSamples(index, params.images, params.adapt.margins, 0),
    )


def time_samples(index: Index, params: Params, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of a source and of a target sample."""
    source, target = samples_of(index, params)
    count = len(index.records)
    ways: dict[str, Callable[[], object]] = {
        "source": lambda: [source[i] for i in range(count)],
        "target": lambda: [target[i] for i in range(count)],
    }
    seconds = interleave(ways, rounds, time.process_time)
    return {name: [value / count for value in values] for name, values in seconds.items()}


def rate(seconds: dict[str, list[float]], what: str) -> Answer:
    """Images a second a core, source and target in turn."""
    pair = sum(statistics.median(values) for values in seconds.values())
    return Answer(f"samples a second a core, {what}", 2 / pair, "/ s", seconds=seconds)


def compare_decoders(path: Path, rounds: int) -> Answer:
    """Decoding one PNG by three libraries: OpenCV's time over that of the fastest."""
    ways: dict[str, Callable[[], object]] = {
        "OpenCV": lambda: cv2.imread(str(path), cv2.IMREAD_COLOR),
        "Pillow": lambda: np.asarray(Image.open(path)),
        "torchvision": lambda: decode_image(str(path)),
    }
    seconds = interleave(ways, rounds, time.process_time)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Answer(
        f"decoding a PNG of {FULL[0]} x {FULL[1]}, {path.stat().st_size / 1e6:.1f} MB: OpenCV",
        medians["OpenCV"] / min(medians.values()),
        "of the fastest library",
        seconds=seconds,
    )


def feed_of_a_gpu(seconds: dict[str, list[float]]) -> Answer:
    """The shortest step that CORES cores can feed with 2 + 2 images."""
    work = 2 * sum(statistics.median(values) for values in seconds.values())
    return Answer(
        f"shortest step that {CORES} such cores feed, 2 + 2 crops of 1024 x 1024 (estimate)",
        1000 * work / CORES,
        "ms",
        details={"core_seconds_a_step": work},
    )


def share_of_waiting(index: Index, params: Params, steps: int) -> Answer:
    """Whole training steps with the loader's processes beside them."""
    setting = create_setting(params)
    networks, size = setting.networks, params.adapt.batch_size
    source, target = samples_of(index, params)
    optimiser = create_optimiser(networks.student, params.adapt.optimiser, networks.projector)
    device = networks.student.device
    task = made_up_task(params, device)
    workers = params.runtime.workers
    waits: list[float] = []
    pairs = zip(
        source_batches(source, range(steps), size, workers),
        target_batches(target, range(steps), size, workers),
        strict=True,
    )
    whole = 0.0
    for step, (labelled, unlabelled) in enumerate(_timed(pairs, waits)):
        if step == 1:  # the first batch waits for the loader's processes to start
            whole = time.perf_counter()
        optimiser.zero_grad()
        report = joint_step(networks, labelled.to(device), unlabelled.to(device), task, step)
        float(report.losses["source"])
        optimiser.step()
    whole = time.perf_counter() - whole
    return Answer(
        f"share of a step spent waiting for data, {describe(params)}",
        100 * sum(waits[2:steps]) / whole,
        "%",
        bar=5.0,
        details={"first_batch_seconds": round(waits[0], 2)},
    )


def _timed(items: Iterator[Item], waits: list[float]) -> Iterator[Item]:
    """The items, noting how long each was waited for."""
    while True:
        started = time.perf_counter()
        item = next(items, None)
        waits.append(time.perf_counter() - started)
        if item is None:
            return
        yield item


def answers(rounds: int, steps: int) -> list[Answer]:
    """Of the demo's images, and of those of the paper's run."""
    params = load_params()
    paper = changed(load_preset("gta_resnet101"), {"images.target_size": (2048, 1024)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = convert_game(write_game(folder / "small", 60, (272, 144)), folder / "small_out")
        large = convert_game(write_game(folder / "large", 4, FULL), folder / "large_out")
        large = replace(large, resize=ENLARGED)
        demo = time_samples(small, params, rounds)
        full = time_samples(large, paper, rounds)
        return [
            rate(demo, "demo"),
            rate(full, f"1024 x 1024 crops of PNGs of {FULL[0]} x {FULL[1]}"),
            compare_decoders(folder / "large/images/00000.png", rounds),
            share_of_waiting(small, params, steps),
            feed_of_a_gpu(full),
        ]


if __name__ == "__main__":
    command("data", __doc__, answers, rounds=5, steps=20)
