"""The tests that need a card."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.results import TESTS, guarded, put


def run_tests() -> None:
    """Files with tests marked cuda alone: others may need packages that are not here."""
    files = [path for path in Path("tests").rglob("test_*.py") if "mark.cuda" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-o", "addopts=--import-mode=importlib", *map(str, sorted(files))],
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout, flush=True)
    summary = (done.stdout.strip().splitlines() or ["pytest said nothing"])[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", summary)}
    if not counts.keys() & {"passed", "skipped", "failed", "error", "errors"}:
        raise RuntimeError(summary)
    bad = sum(counts.get(word, 0) for word in ("failed", "error", "errors"))
    put(TESTS, float(bad), "", summary)


if __name__ == "__main__":
    guarded(TESTS, run_tests)
