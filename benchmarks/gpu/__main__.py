"""All parts on one card in one go, each with a time limit of its own; a table, and a JSON.

    make gpu                       about nine minutes
    SMALL=1 make gpu               the same on a CPU with little of everything: a rehearsal
    make gpu PYTHON=python3 WHEELS=wheels PARTS="kernel step gta_resnet101"

A part that fails, or that takes longer than it may, is a line of the table and no more. What the
parts found so far is in gpu.json all the time.

    python -m benchmarks.gpu [--most 530] [PART ...]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.results import Line, add_line, content, read_lines, table
from ssda.files import write_text

SMALL = os.environ.get("SMALL") == "1"
PATIENCE = 6 if SMALL else 1
"""Factor of all time limits: a rehearsal is not about time."""


@dataclass(frozen=True)
class Part:
    """A module that writes lines.

    Attributes:
        name: for the table; words of it choose the part.
        module: of this folder.
        seconds: that it may take.
        arguments: of its command line.
        rehearsed: False where another part rehearses the same.
    """

    name: str
    module: str
    seconds: int
    arguments: tuple[str, ...] = ()
    rehearsed: bool = True


PARTS = (
    Part("machine", "machine", 30),
    Part("tests", "suite", 60),
    Part("kernel", "kernel", 50),
    Part("step demo", "step", 40, ("demo",)),
    Part("step gta_resnet101", "step", 50, ("gta_resnet101",)),
    Part("step gta_mit_b5", "step", 50, ("gta_mit_b5",)),
    Part("step gta_dinov3_l", "step", 60, ("gta_dinov3_l",)),
    Part("resume deterministic", "resume", 50, ("deterministic",)),
    Part("training", "training", 80),
    Part("demo", "demo_run", 110),
    Part("resume default", "resume", 50, ("default",), rehearsed=False),
    Part("switches gta_resnet101", "switches", 90, ("gta_resnet101",)),
    Part("switches gta_mit_b5", "switches", 90, ("gta_mit_b5",), rehearsed=False),
)


def run_part(part: Part, seconds: float, lines: Path, log: Path, env: Mapping[str, str]) -> None:
    """Run a part in a process group of its own; what goes wrong becomes a line."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{part.module}", *part.arguments]
    known = {
        "GPU_LINES": str(lines),
        "GPU_PART": part.name,
        "GPU_UNTIL": str(time.time() + seconds),
    }
    with log.open("a") as file:
        print(f"== {part.name}", file=file, flush=True)
        process = subprocess.Popen(
            command, env={**env, **known}, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            add_line(lines, Line(part.name, "time limit", "STOPPED", "", f"after {seconds:.0f} s"))
            return
        finally:
            end_group(process)
    if code:
        note = f"exit code {code}: {last_line(log)}"
        add_line(lines, Line(part.name, "the part itself", "FAILED", "", note))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a part with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def last_line(log: Path) -> str:
    """The end of a log, shortened."""
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1][:160]


def environment(folder: Path) -> dict[str, str]:
    """Of the parts: this code first, and what the wheels that were brought along hold.

    Raises ValueError where the wheels cannot be installed.
    """
    paths = [str(Path.cwd())]
    if wheels := os.environ.get("WHEELS"):
        files = sorted(map(str, Path(wheels).glob("*.whl")))
        if not files:
            raise ValueError(f"WHEELS = {wheels!r}: no wheels in this folder")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        done = subprocess.run(
            [*command, "--no-compile", "--target", str(folder), *files],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ValueError(f"WHEELS = {wheels!r}: {done.stderr.strip()[-300:]}")
        paths.append(str(folder))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    threads = {"OMP_NUM_THREADS": "1"} if SMALL else {}
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, **threads, "PYTHONPATH": os.pathsep.join(paths)}


def run(parts: Sequence[Part], most: float, out: Path, log: Path) -> list[Line]:
    """Run parts until the time is up; writes the JSON after each. In a rehearsal two at a time."""
    until = time.monotonic() + most
    names = [part.name for part in parts]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2 if SMALL else 1) as pool:
        lines = Path(folder) / "lines.jsonl"
        env = environment(Path(folder) / "wheels")

        def write() -> list[Line]:
            found = sorted(read_lines(lines), key=lambda line: names.index(line.part))
            machine = {line.what: line.value for line in found if line.part == "machine"}
            write_text(out, json.dumps(content(machine, found, small=SMALL), indent=1) + "\n")
            return found

        def work(part: Part) -> None:
            left = until - time.monotonic()
            if left < 5:
                add_line(lines, Line(part.name, "time limit", "SKIPPED", "", "no time left"))
            else:
                print(f"{part.name} ...", file=sys.stderr, flush=True)
                run_part(part, min(left, part.seconds * PATIENCE), lines, log, env)
            write()

        list(pool.map(work, parts))
        return write()


def main() -> None:
    """Run the parts, or those that are named; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="names or their first words")
    parser.add_argument("--most", type=float, default=530, help="seconds for all parts together")
    arguments = parser.parse_args()
    if find_spec("torch") is None:
        sys.exit(f"error: {sys.executable} has no torch: make setup, or make gpu PYTHON=...")
    chosen = [
        part
        for part in PARTS
        if (part.rehearsed or not SMALL)
        and (not arguments.parts or {part.name, *part.name.split()} & {*arguments.parts})
    ]
    if not chosen:
        names = ", ".join(part.name for part in PARTS)
        sys.exit(f"error: PART = {arguments.parts}: allowed are {names}, and words of them")
    folder = Path(os.environ.get("OUT") or ".ssda/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "gpu.log"
    log.unlink(missing_ok=True)
    results = SMALL or "OUT" in os.environ
    out = (folder if results else Path(__file__).parents[1] / "results") / "gpu.json"
    try:
        lines = run(chosen, arguments.most * PATIENCE, out, log)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(lines, small=SMALL))
    print(f"{out}; what the parts said: {log}", file=sys.stderr)


if __name__ == "__main__":
    main()
