"""The one command on a card: its table, its guards, and (soak) its rehearsal on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS, Part, environment, run, run_part
from benchmarks.gpu.results import (
    BARS,
    MEMORY,
    STEP,
    WAITS,
    Line,
    content,
    guarded,
    put,
    read_lines,
    table,
)
from tests.conftest import ROOT

RESNET = "step gta_resnet101"


def test_figures_are_held_against_their_bars() -> None:
    lines = [
        Line(RESNET, STEP, 79.5, "ms"),
        Line(RESNET, MEMORY, 8.25, "GiB", "a | b"),
        Line("step demo", STEP, "FAILED", "", "no memory"),
        Line("resume deterministic", "killed and resumed", "equal"),
        Line(RESNET, "losses", "finite"),
    ]
    rows = table(lines, small=False).splitlines()
    assert f"| {RESNET} | {STEP} | 79.5 ms | <= 80 | met |  |" in rows
    assert f"| {RESNET} | {MEMORY} | 8.25 GiB | <= 8 | MISSED | a / b |" in rows
    assert f"| step demo | {STEP} | FAILED | <= 15 | MISSED | no memory |" in rows
    assert "| resume deterministic | killed and resumed | equal | = equal | met |  |" in rows
    assert f"| {RESNET} | losses | finite |  |  |  |" in rows
    assert f"missed: {RESNET}: {MEMORY}, step demo: {STEP}" in rows
    assert rows[-1].startswith("not measured: tests:") and f"{RESNET}: {WAITS}" in rows[-1]
    rehearsal = table(lines, small=True)
    assert "met |" not in rehearsal and "MISSED" not in rehearsal
    verdicts = [line["verdict"] for line in content({}, lines, small=False)["lines"]]
    assert verdicts == ["met", "MISSED", "MISSED", "met", ""]


def test_every_bar_belongs_to_a_part() -> None:
    assert {part for part, _ in BARS} <= {part.name for part in PARTS}


def program(folder: Path, text: str) -> str:
    """A program in the interpreter's place: as a part it gets the table's file."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


SAYS = """echo '{"part": "p", "what": "w", "value": 1.5}' >> "$GPU_LINES" """


@pytest.mark.parametrize(
    ("text", "what", "value", "note"),
    [
        (f"{SAYS}; echo broken >&2; exit 3", "the part itself", "FAILED", "exit code 3: broken"),
        (f"{SAYS}; sleep 60 & echo $! > child; wait", "time limit", "STOPPED", "after 1 s"),
    ],
)
def test_a_part_that_fails_or_hangs_leaves_what_it_had_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, what: str, value: str, note: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))
    lines = tmp_path / "lines.jsonl"
    run_part(Part("p", "any", 1), 1.0, lines, tmp_path / "log", os.environ)
    assert read_lines(lines) == [Line("p", "w", 1.5), Line("p", what, value, "", note)]
    if (tmp_path / "child").exists():
        child = int((tmp_path / "child").read_text())
        for _ in range(100):
            status = Path(f"/proc/{child}/status")
            if not status.exists() or "zombie" in status.read_text():
                break
            time.sleep(0.02)
        else:
            os.kill(child, signal.SIGKILL)
            pytest.fail("what a stopped part had started still runs")


def test_results_are_written_as_they_come_until_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", program(tmp_path, f"{SAYS}; cp out.json seen.json"))
    Path("out.json").write_text("")
    parts = [Part("p", "a", 9), Part("b", "b", 9)]
    found = run(parts, 60.0, Path("out.json"), Path("log"))
    assert [line.part for line in found] == ["p", "p"]
    assert len(json.loads(Path("seen.json").read_text())["lines"]) == 1  # after the first part
    assert len(json.loads(Path("out.json").read_text())["lines"]) == 2
    (late,) = run(parts[1:], 1.0, Path("out.json"), Path("log"))
    assert late == Line("b", "time limit", "SKIPPED", "", "no time left")


def test_a_piece_that_fails_is_a_line_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_LINES", str(tmp_path / "lines"))
    monkeypatch.setenv("GPU_PART", "p")

    def divide(number: int) -> None:
        put("quotient", 1 / number)

    guarded("quotient", divide, 0)
    guarded("quotient", divide, 2)
    first, second = read_lines(tmp_path / "lines")
    assert first.value == "FAILED" and first.note.startswith("ZeroDivisionError: ")
    assert "(test_gpu.py:" in first.note
    assert second == Line("p", "quotient", 0.5)


def test_wheels_that_are_not_there_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHEELS", str(tmp_path))
    with pytest.raises(ValueError, match="no wheels"):
        environment(tmp_path / "site")


@pytest.mark.soak
def test_the_rehearsal_measures_all_that_needs_no_card(tmp_path: Path) -> None:
    env = {**os.environ, "SMALL": "1", "OUT": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, env=env, check=True)
    lines = [Line(*values) for values in map(_fields, _lines(tmp_path / "gpu.json"))]
    assert [line for line in lines if line.value in ("FAILED", "STOPPED", "SKIPPED")] == [
        Line("switches gta_resnet101", "compute.compile = True", "SKIPPED", "", "a rehearsal")
    ]
    measured = {(line.part, line.what) for line in lines}
    on_a_card = {bar for bar in BARS if bar[1] in (MEMORY, WAITS)}
    assert set(BARS) - measured == on_a_card
    assert {line.value for line in lines if line.what == "losses"} == {"finite"}
    assert ("resume deterministic", "killed and resumed", "equal") in {
        (line.part, line.what, line.value) for line in lines
    }


def _lines(path: Path) -> list[dict[str, str | float]]:
    return json.loads(path.read_text())["lines"]


def _fields(line: dict[str, str | float]) -> list[str | float]:
    return [line[name] for name in ("part", "what", "value", "unit", "note")]
