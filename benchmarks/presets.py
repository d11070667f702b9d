"""What do the presets need: parameters, GPU memory, seconds a step?

Parameters are counted. Memory and operations of a step at the preset's own crop are derived without
computing anything: on fake tensors, what autograd would keep is added up.
A step at a reduced crop, all mechanisms on, is timed here, each preset in its own process.

    python -m benchmarks.presets [NAME ...] [--crop 256] [--steps 3]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import apart, describe_machine, interleave, peak_gib, results_so_far
from benchmarks.step import create_setting, irreducible_passes, reduced, whole_step
from pipeline.overlays import load_preset
from ssda.files import write_json
from ssda.labels import CITYSCAPES
from ssda.method.losses import labelling_loss
from ssda.networks.segmenter import Segmenter
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

    Activations are those that the largest pass (the student's on the target, or on a micro-batch
    of it) keeps for its gradient, in bytes of float32; under bfloat16 autocast they take between
    half and all of it.
    """
    student = Segmenter(params.model, CITYSCAPES.num_classes).train()
    encoder, head = count(student.encoder), count(student) - count(student.encoder)
    width, height = params.images.crop
    batch = params.adapt.micro_batch_size or params.adapt.batch_size
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
    looks = 1 + params.adapt.pseudo_labels.mirrored
    passes = 3 + (params.adapt.losses.masked > 0)
    operations = looks * teacher.get_total_flops() + passes * recomputed * forward.get_total_flops()
    operations = operations * params.adapt.batch_size // batch
    return {
        "encoder_million": round(encoder / 1e6, 1),
        "head_million": round(head / 1e6, 1),
        "crop": [width, height],
        "batch": params.adapt.batch_size,
        "state_gigabyte": round(state / GIGABYTE, 1),
        "activations_float32_gigabyte": round(sum(kept.values()) / GIGABYTE, 1),
        "tera_operations_a_step": round(operations / 1e12, 1),
    }


def count(module: nn.Module) -> int:
    """Numbers in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def measure(params: Params, steps: int) -> dict[str, Any]:
    """Seconds of a joint step with optimiser and teacher's update, and this process's peak memory.

    In turn with the irreducible passes. Weights are random (a step costs the same). With
    OMP_NUM_THREADS=1 seconds are those of the processor, which other work on the machine does not
    change.
    """
    setting = create_setting(params)
    step = whole_step(setting)
    report = step()
    ways = {"step": step, "irreducible": irreducible_passes(setting)}
    seconds = interleave(ways, steps)
    return {
        "crop": list(params.images.crop),
        "seconds": seconds,
        "ratio": statistics.median(seconds["step"]) / statistics.median(seconds["irreducible"]),
        "peak_gib": peak_gib(setting.networks.student.device),
        **{name: float(report.scalars[name]) for name in ("seeds", "uncertainty")},
        "losses": {name: float(value) for name, value in report.losses.items()},
    }


def main() -> None:
    """Derive, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", default=PRESETS, metavar="NAME")
    parser.add_argument("--crop", type=int, default=256, help="of the timed steps")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/presets.json"))
    arguments = parser.parse_args()
    machine = describe_machine()
    results = results_so_far(arguments.out).get("presets", {})
    print(
        "| preset | encoder + head, M | GPU, GB (derived) | TFLOP a step "
        "| s a step | over irreducible | peak, GiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.names:
        params = load_preset(name)
        needs = apart(derive, params)
        took = apart(measure, reduced(params, arguments.crop), arguments.steps)
        results[name] = {"derive": needs, "measure": took}
        least = needs["state_gigabyte"] + needs["activations_float32_gigabyte"] / 2
        most = needs["state_gigabyte"] + needs["activations_float32_gigabyte"]
        print(
            f"| {name} | {needs['encoder_million']} + {needs['head_million']} "
            f"| {least:.0f} to {most:.0f} "
            f"| {needs['tera_operations_a_step']} "
            f"| {statistics.median(took['seconds']['step']):.2f} "
            f"| {took['ratio']:.3f} | {took['peak_gib']:.1f} |",
            flush=True,
        )
    write_json(arguments.out, {"machine": machine, "presets": results})


if __name__ == "__main__":
    main()
