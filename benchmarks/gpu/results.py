"""What the parts found: a line a figure, held against its bar; needs Python alone."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Value = float | str


@dataclass(frozen=True)
class Line:
    """A figure, or the word for what was found in its place."""

    part: str
    what: str
    value: Value
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """What a value is to be."""

    sign: Literal["<=", ">=", "="]
    limit: Value

    def met(self, value: Value) -> bool:
        """Whether a value is on the right side; a word in a figure's place is not."""
        if isinstance(self.limit, str) or isinstance(value, str):
            return value == self.limit
        return value <= self.limit if self.sign == "<=" else value >= self.limit


STEP, MEMORY, WAITS = "joint step", "peak memory of tensors", "waits of the host a step"
WAITING, VALIDATION = "waiting for data", "validation of a run"
KERNEL, TIMES = "forward and backward, 2 x 19 x 256 x 256, radius 5", "times as fast as unfolding"
RESUMED = "killed and resumed"
TESTS, RUN = "tests that fail", "default run"

BARS: dict[tuple[str, str], Bar] = {
    ("tests", TESTS): Bar("<=", 0),
    ("kernel", KERNEL): Bar("<=", 0.5),
    ("kernel", TIMES): Bar(">=", 10),
    ("step demo", STEP): Bar("<=", 15),
    ("step gta_resnet101", STEP): Bar("<=", 80),
    ("step gta_resnet101", MEMORY): Bar("<=", 8),
    ("step gta_mit_b5", STEP): Bar("<=", 100),
    ("step gta_dinov3_l", STEP): Bar("<=", 670),
    **{
        (f"step {name}", WAITS): Bar("<=", 2)
        for name in ("demo", "gta_resnet101", "gta_mit_b5", "gta_dinov3_l")
    },
    ("training", WAITING): Bar("<=", 5),
    ("training", VALIDATION): Bar("<=", 10),
    ("resume deterministic", RESUMED): Bar("=", "equal"),
    ("demo", RUN): Bar("<=", 60),
}
"""On one H100 with 16 cores: ms, GiB, per cent, seconds. A rehearsal is held against none."""


def read_lines(path: Path) -> list[Line]:
    """The lines that parts have written so far; one that is cut off is left out."""
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(Line(**json.loads(text)))
        except ValueError:
            continue
    return lines


def add_line(path: Path, line: Line) -> None:
    """Append a line at once: a part that is stopped leaves what it had."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def put(what: str, value: Value, unit: str = "", note: str = "") -> None:
    """Write a line of the part that this process is."""
    line = Line(os.environ.get("GPU_PART", ""), what, value, unit, " ".join(note.split()))
    print(line, flush=True)
    if path := os.environ.get("GPU_LINES"):
        add_line(Path(path), line)


def guarded(what: str, work: Callable[..., object], *arguments: object) -> None:
    """Do a piece of work; a failure is a line of the table, and the next piece goes on."""
    try:
        work(*arguments)
    except Exception as error:
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}"[:160]
        put(what, "FAILED", "", f"{said} ({Path(place.filename).name}:{place.lineno})")


def verdict(line: Line, *, small: bool) -> str:
    """Met or missed; empty where there is no bar, or for a rehearsal."""
    bar = BARS.get((line.part, line.what))
    return "" if bar is None or small else "met" if bar.met(line.value) else "MISSED"


def table(lines: Sequence[Line], *, small: bool) -> str:
    """All lines in Markdown, and a line of those bars that were missed or not measured."""
    rows = ["| part | what | value | bar | | note |", "| --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        bar = BARS.get((line.part, line.what))
        value = f"{line.value:.4g}" if isinstance(line.value, float) else str(line.value)
        cells = (
            line.part,
            line.what,
            f"{value} {line.unit}".strip(),
            f"{bar.sign} {bar.limit}" if bar else "",
            verdict(line, small=small),
            line.note,
        )
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    measured = {(line.part, line.what) for line in lines}
    missed = [
        f"{line.part}: {line.what}" for line in lines if verdict(line, small=small) == "MISSED"
    ]
    unmeasured = [f"{part}: {what}" for part, what in BARS if (part, what) not in measured]
    ends = [("missed", missed), ("not measured", unmeasured)]
    return "\n".join([*rows, *(f"{word}: {', '.join(names) or 'none'}" for word, names in ends)])


def content(machine: dict[str, Value], lines: Sequence[Line], *, small: bool) -> dict[str, object]:
    """For the JSON."""
    return {
        "machine": machine,
        "small": small,
        "lines": [asdict(line) | {"verdict": verdict(line, small=small)} for line in lines],
    }
