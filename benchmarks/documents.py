"""Write what was measured into the documents: python -m benchmarks.documents."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.measure import HEADER, RESULTS, rows
from pipeline.drawing.tables import fill_documents

PARTS = ("trucrf", "step", "data", "conversion", "evaluation", "startup", "growth")
"""The questions of speed, in the order of the table."""


def figures() -> dict[str, str]:
    """Each figure's name, and what the documents say there, in Markdown."""
    trucrf, step, evaluation, startup = (
        _answers(part) for part in ("trucrf", "step", "evaluation", "startup")
    )
    speed = next(v for question, v in trucrf.items() if "radius 5, 40% seeds" in question)
    memory = next(v for question, v in trucrf.items() if question.startswith("memory"))
    joint = [value for question, value in step.items() if question.startswith("joint step")]
    share = next(v for question, v in evaluation.items() if question.startswith("share"))
    around = next(v for question, v in startup.items() if "single step" in question)
    return {
        "costs": "\n".join([HEADER, *(row for part in PARTS for row in rows(part))]),
        "counts": _counts(),
        "trucrf speed": f"{speed:.0f}",
        "trucrf memory": f"{memory:.0f}",
        "joint steps": f"{min(joint):.2f} to {max(joint):.2f}",
        "joint step of the demo": f"{joint[0]:.2f}",
        "share of evaluate": f"{share:.0f}",
        "around a stage": f"{around:.1f}",
    }


def _answers(part: str) -> dict[str, float]:
    """The value of each question."""
    content = json.loads((RESULTS / f"{part}.json").read_text())
    return {answer["question"]: answer["value"] for answer in content["answers"]}


def _counts() -> str:
    """What a joint step asks of a GPU, a preset a row."""
    lines = ["| preset | operators | casts | waits of the host | TFLOP |", "| --- " * 5 + "|"]
    found: dict[str, Any] = json.loads((RESULTS / "counts.json").read_text())
    for preset, seen in found.items():
        operators, waits = sum(seen["calls"].values()), sum(seen["waits"].values())
        flops = sum(seen["flops"].values()) / 1e12
        lines.append(f"| `{preset}` | {operators:,} | {seen['casts']:,} | {waits} | {flops:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    fill_documents("benchmarks", figures())
