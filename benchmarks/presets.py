"""What do the presets need: parameters, GPU memory, seconds a step?

Parameters are counted. Memory and operations of a step at the preset's own crop are derived without
computing anything: on fake tensors, what autograd would keep is added up.
A step at a reduced crop, all mechanisms on, is timed here, each preset in its own process.

    python -m benchmarks.presets [NAME ...] [--crop 256] [--steps 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import describe_machine, peak_mib
from benchmarks.step import made_up_task, random_batches
from pipeline.overlays import load_preset
from ssda.engine.device import pick_device, place
from ssda.engine.training import create_optimiser
from ssda.files import write_json
from ssda.labels import CITYSCAPES
from ssda.method.adaptation import Networks, joint_step
from ssda.method.learning import Report
from ssda.method.losses import labelling_loss
from ssda.method.subdomains import PredictedShares
from ssda.method.teacher import create_teacher, moving_average
from ssda.networks.segmenter import Segmenter, stochastic_pass
from ssda.params import Params
from ssda.randomness import generators

PRESETS = (
    "demo",
    "gta_small",
    "gta_half",
    "gta_resnet101",
    "synthia_resnet101",
    "gta_mit_b5",
    "gta_dinov3_l",
)
GIGABYTE = 1e9
STUDENT, AVERAGE = 4 + 4 + 8, 4
"""Bytes of a parameter: the student's with gradient and AdamW's moments, and a frozen network's."""


def derive(params: Params) -> dict[str, Any]:
    """Parameters, memory and operations of a joint step at the preset's crop and batch.

    Activations are those that the largest pass (the student's on the target) keeps for its
    gradient, in bytes of float32; under bfloat16 autocast they take between half and all of it.
    """
    student = Segmenter(params.model, CITYSCAPES.num_classes).train()
    encoder, head = count(student.encoder), count(student) - count(student.encoder)
    width, height = params.images.crop
    batch = params.adapt.batch_size
    draws = generators(0, "benchmark", 0, batch)
    masks = student.draw_masks(params.adapt.uncertainty.student_passes, draws)
    corners = student.draw_corners((height, width), draws)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()  # pyright: ignore[reportPrivateUsage]
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(batch, 3, height, width)
        labels = torch.zeros(batch, height, width, dtype=torch.int64)
        with (
            FlopCounterMode(display=False) as forward,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            views = student.observe(images, masks, corners)
            loss = labelling_loss(views, labels, torch.ones(batch, height, width))
        with FlopCounterMode(display=False) as teacher, torch.no_grad():
            student.eval().predict(images)
    assert loss.requires_grad
    pulls = params.adapt.losses.feature_distance > 0
    state = (encoder + head) * (STUDENT + AVERAGE) + (encoder * AVERAGE if pulls else 0)
    recomputed = 4 if params.model.checkpointing else 3
    operations = teacher.get_total_flops() + 3 * recomputed * forward.get_total_flops()
    return {
        "encoder_million": round(encoder / 1e6, 1),
        "head_million": round(head / 1e6, 1),
        "crop": [width, height],
        "batch": batch,
        "state_gigabyte": round(state / GIGABYTE, 1),
        "activations_float32_gigabyte": round(sum(kept.values()) / GIGABYTE, 1),
        "tera_operations_a_step": round(operations / 1e12, 1),
    }


def count(module: nn.Module) -> int:
    """Numbers in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def certain(params: Params) -> Params:
    """The same preset with every pseudo label certain.

    The weights are random: with q = 0 the losses that it weighs would be 0.
    """
    uncertainty = params.adapt.uncertainty.model_copy(update={"confidence_threshold": 0.0})
    adapt = params.adapt.model_copy(update={"uncertainty": uncertainty})
    return params.model_copy(update={"adapt": adapt})


def reduced(params: Params, crop: int) -> Params:
    """The same preset at a smaller crop, for steps on a CPU; every pseudo label is certain."""
    params = certain(params)
    detail = None if params.model.detail is None else (crop // 2, crop // 2)
    return params.model_copy(
        update={
            "images": params.images.model_copy(update={"crop": (crop, crop)}),
            "model": params.model.model_copy(update={"detail": detail}),
            "adapt": params.adapt.model_copy(update={"batch_size": 2}),
        }
    )


def measure(params: Params, steps: int) -> dict[str, Any]:
    """Seconds of a joint step with optimiser and teacher's update, and this process's peak memory.

    In turn with the passes that no implementation can do without: teacher, frozen encoder, student
    forward and backward on three batches. Weights are random (a step costs the same); one step runs
    before the clock does. Seconds of the processor, summed over its threads, tell what other work
    on the machine does not change; they are fair with OMP_NUM_THREADS=1 (threads that wait for each
    other burn time too).
    """
    device = pick_device(params.runtime.device)
    torch.manual_seed(0)
    student = place(Segmenter(params.model, CITYSCAPES.num_classes), device, params.compute).train()
    teacher = create_teacher(student)
    imagenet = None
    if params.adapt.losses.feature_distance > 0:
        imagenet = create_teacher(student.encoder)
    predicted = PredictedShares(CITYSCAPES.num_classes).to(device)
    networks = Networks(student, teacher, imagenet, predicted)
    task = made_up_task(params, device)
    source, target = random_batches(params, device)
    optimiser = create_optimiser(student, params.adapt.optimiser)
    update = moving_average(teacher, student, params.adapt.teacher_momentum)

    def step() -> Report:
        optimiser.zero_grad()
        report = joint_step(networks, source, target, task, 0)
        optimiser.step()
        update(1)
        return report

    def irreducible() -> None:
        optimiser.zero_grad()
        with torch.no_grad():
            teacher(target.images)
            if imagenet is not None:
                imagenet(student.context(source.images))
        for images in (source.images, target.images, source.images):
            views = stochastic_pass(student, images, 1, generators(0, "benchmark", 0, len(images)))
            views.logits.mean().backward()

    report = step()
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    seconds: dict[str, list[float]] = {"step": [], "irreducible": []}
    processor: dict[str, list[float]] = {"step": [], "irreducible": []}
    for _ in range(steps):
        for name, work in (("step", step), ("irreducible", irreducible)):
            started, burnt = time.perf_counter(), time.process_time()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            seconds[name].append(round(time.perf_counter() - started, 2))
            processor[name].append(round(time.process_time() - burnt, 2))
    used = seconds if on_gpu else processor
    losses = {f"loss_{name}": float(value) for name, value in report.losses.items()}
    return {
        "crop": list(params.images.crop),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "processor_seconds": processor,
        "ratio": round(statistics.median(used["step"]) / statistics.median(used["irreducible"]), 3),
        "peak_mib": round(peak or peak_mib()),
        "seeds": round(float(report.scalars["seeds"]), 3),
        "uncertainty": round(float(report.scalars["uncertainty"]), 4),
        "losses": {name: round(value, 4) for name, value in losses.items()},
    }


def main() -> None:
    """Derive, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", default=PRESETS, metavar="NAME")
    parser.add_argument("--crop", type=int, default=256, help="of the timed steps")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/presets.json"))
    parser.add_argument("--only", choices=("derive", "measure"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        params = load_preset(arguments.names[0])
        derives = arguments.only == "derive"
        work = (
            derive(params) if derives else measure(reduced(params, arguments.crop), arguments.steps)
        )
        print(json.dumps(work))
        return
    results: dict[str, Any] = {}
    print(
        "| preset | encoder + head, M | GPU, GB (derived) | TFLOP a step "
        "| s a step | of the processor | over irreducible | peak, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.names:
        options = ["--crop", str(arguments.crop), "--steps", str(arguments.steps)]
        parts = {part: run(name, ["--only", part, *options]) for part in ("derive", "measure")}
        results[name] = parts
        needs, took = parts["derive"], parts["measure"]
        least = needs["state_gigabyte"] + needs["activations_float32_gigabyte"] / 2
        most = needs["state_gigabyte"] + needs["activations_float32_gigabyte"]
        print(
            f"| {name} | {needs['encoder_million']} + {needs['head_million']} "
            f"| {least:.0f} to {most:.0f} "
            f"| {needs['tera_operations_a_step']} "
            f"| {statistics.median(took['seconds']['step']):.2f} "
            f"| {statistics.median(took['processor_seconds']['step']):.2f} "
            f"| {took['ratio']} | {took['peak_mib']} |",
            flush=True,
        )
    write_json(arguments.out, {"machine": describe_machine(), "presets": results})


def run(name: str, options: list[str]) -> dict[str, Any]:
    """A part's answer, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.presets", name, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
