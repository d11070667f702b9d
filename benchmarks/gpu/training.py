"""Adaptation from full-size files: waiting by number of workers, statistics, validation."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.results import VALIDATION, WAITING, guarded, put
from benchmarks.gpu.shared import SMALL, prepared, preset, wait
from benchmarks.made_up import convert_game, write_game
from ssda.datasets.index import Index
from ssda.engine.adapting import adapt_steps
from ssda.engine.evaluation import validation_scores
from ssda.engine.statistics import STATISTICS_IMAGES, use_target_statistics
from ssda.labels import CITYSCAPES
from ssda.params import Params
from ssda.sections import changed

PRESET = "gta_resnet101"
WORKERS = (1,) if SMALL else (4, 8, 16)
WARM, TIMED = (1, 2) if SMALL else (8, 24)
VALIDATED = 500
"""Images of Cityscapes' validation split."""


def sets(folder: Path, params: Params) -> tuple[Index, Index]:
    """A game and a city of the sizes that the preset expects."""
    count, small = (2, (160, 96)) if SMALL else (8, None)
    made: list[Index] = []
    for name, size in (("game", (1914, 1052)), ("city", (2048, 1024))):
        root = write_game(folder / name / "raw", count, small or size)
        made.append(convert_game(root, folder / name / "converted"))
    (source,) = params.sources.values()
    return replace(made[0], resize=None if SMALL else source.resize), made[1]


def measure(folder: Path) -> None:
    """Steps with each number of workers, then statistics and validation beside them."""
    params = preset(PRESET)
    game, city = sets(folder, params)
    setting = prepared(params)
    waiting: dict[int, float] = {}
    pace = 0.0
    for workers in WORKERS:
        some = changed(params, {"runtime.workers": workers, "runtime.picture_every": 0})
        records = adapt_steps(setting.networks, [game], city, some, CITYSCAPES)
        costs = [next(records).cost for _ in range(WARM + TIMED)][WARM:]
        del records  # which ends the workers
        pace = statistics.mean(cost.seconds for cost in costs)
        waiting[workers] = 100 * statistics.mean(cost.waited for cost in costs) / pace
        note = f"{waiting[workers]:.1f} % of it waiting for data"
        put(f"step with its images, {workers} workers a set", 1e3 * pace, "ms", note)
    best = min(waiting, key=lambda workers: waiting[workers])
    put(WAITING, waiting[best], "%", f"{best} workers a set")
    params = changed(params, {"runtime.workers": best})
    student, teacher = setting.networks.student, setting.networks.teacher

    def statistics_of_target() -> None:
        use_target_statistics(student, city, params)

    def validation() -> None:
        validation_scores([teacher, student], city, params)

    seconds = {
        work.__name__: seconds_an_image(work, len(city.records))
        for work in (statistics_of_target, validation)
    }
    taken = STATISTICS_IMAGES * seconds["statistics_of_target"]
    put(f"new statistics from {STATISTICS_IMAGES} images", taken, "s")
    once, every = VALIDATED * seconds["validation"], params.adapt.validate_every
    note = f"{once:.0f} s for {VALIDATED} images, teacher and student, every {every} steps"
    put(VALIDATION, 100 * once / (once + every * pace), "%", note)


def seconds_an_image(work: Callable[[], None], count: int) -> float:
    """Of a piece of work over so many images, the second time."""
    work()
    wait()
    started = time.perf_counter()
    work()
    wait()
    return (time.perf_counter() - started) / count


def main() -> None:
    """In a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        guarded(WAITING, measure, Path(folder))


if __name__ == "__main__":
    main()
