"""Write what was measured into the documents: python -m benchmarks.documents."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from benchmarks.measure import HEADER, RESULTS, rows
from pipeline.drawing.tables import fill_documents

PARTS = ("trucrf", "step", "data", "conversion", "evaluation", "startup", "growth")
"""The questions of speed, in the order of the table."""
JOINT = {
    "demo": "joint step, tf_efficientnet_lite0",
    "resnet101": "joint step, resnet101c, 2 + 2",
    "two resolutions": "joint step, resnet101c, two resolutions",
}


def figures() -> dict[str, str]:
    """Each figure's name, and what the documents say there, in Markdown."""
    answers: list[dict[str, Any]] = [answer for part in PARTS for answer in _read(part)["answers"]]

    def ask(start: str) -> dict[str, Any]:
        return next(answer for answer in answers if answer["question"].startswith(start))

    def milliseconds(start: str, way: str) -> float:
        return 1000 * median(ask(start)["seconds"][way])

    joint = {name: ask(start)["value"] for name, start in JOINT.items()}
    samples, confusion = "samples a second a core, 1024", "confusion matrix of 2048"
    source, target = (milliseconds(samples, way) for way in ("source", "target"))
    convert = ask("`convert` of 16 images")["details"]["labels_a_second_a_core"]
    return {
        "costs": "\n".join([HEADER, *(row for part in PARTS for row in rows(part))]),
        "counts": _counts(),
        "trucrf speed": f"{ask('truncated CRF on cpu')['value']:.0f}",
        "trucrf memory": f"{ask('memory of the truncated CRF')['value']:.0f}",
        "joint steps": f"{min(joint.values()):.2f} to {max(joint.values()):.2f}",
        **{f"joint step {name}": f"{value:.2f}" for name, value in joint.items()},
        "share of evaluate": f"{ask('share of the demo')['value']:.0f}",
        "around a stage": f"{ask('`dvc repro` of the stage')['value']:.1f}",
        "demo samples": f"{ask('samples a second a core, demo')['value']:.0f}",
        "waiting": f"{ask('share of a step spent waiting')['value']:.1f}",
        "source sample": f"{source:.0f}",
        "target sample": f"{target:.0f}",
        "samples of a step": f"{2 * (source + target):.0f}",
        "samples of a step by four": f"{(source + target) / 2:.0f}",
        "decoding": f"{milliseconds('decoding a PNG', 'OpenCV'):.0f}",
        "shortest fed step": f"{ask('shortest step')['value']:.0f}",
        "labels a second": f"{convert:.0f}",
        "confusion ours": f"{milliseconds(confusion, 'ours'):.1f}",
        "confusion usual": f"{milliseconds(confusion, 'usual'):.0f}",
        **_presets(),
    }


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _counts() -> str:
    """What a joint step asks of a GPU, a preset a row."""
    lines = ["| preset | operators | casts | waits of the host | TFLOP |", "| --- " * 5 + "|"]
    for preset, seen in _read("counts").items():
        operators, waits = sum(seen["calls"].values()), sum(seen["waits"].values())
        flops = sum(seen["flops"].values()) / 1e12
        lines.append(f"| `{preset}` | {operators:,} | {seen['casts']:,} | {waits} | {flops:.2f} |")
    return "\n".join(lines)


def _presets() -> dict[str, str]:
    """What each preset's network has and a joint step of it takes."""
    found: dict[str, str] = {}
    for preset, known in _read("presets")["presets"].items():
        derived = known["derive"]
        found |= {
            f"{preset} parameters": f"{derived['encoder_million']} + {derived['head_million']}",
            f"{preset} operations": f"{derived['tera_operations_a_step']:.1f}",
        }
        if (measured := known.get("measure")) is None:
            continue
        found |= {
            f"{preset} seconds": f"{median(measured['seconds']['step']):.2f}",
            f"{preset} peak": f"{measured['peak_mib'] * 2**20 / 1e9:.1f}",
        }
    return found


if __name__ == "__main__":
    fill_documents("benchmarks", figures())
