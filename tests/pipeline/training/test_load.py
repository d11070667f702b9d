"""Load: many images, many steps, many points. Long, and so for make soak."""

import resource
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from demo.scenes import write_cityscapes, write_gta
from pipeline.tracking.run import stage_run
from ssda.datasets.conversion import convert_split
from ssda.datasets.index import Index, check_raw_files, read_index, write_index
from ssda.datasets.layouts import load_layout
from ssda.datasets.loading import SourceSamples
from ssda.engine.adapting import adapt_steps, start_networks
from ssda.engine.pretraining import imagenet_network
from ssda.engine.state import State, StateWriter, copy_tensors
from ssda.engine.training import Progress, create_optimiser
from ssda.labels import CITYSCAPES
from ssda.params import Params
from tests.conftest import make_params

# MLflow's own use of SQLAlchemy.
pytestmark = [
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


def load_params(iterations: int) -> Params:
    return make_params(
        {
            "images.crop": [64, 32],
            "sampling.min_pixels": 10,
            "model.channels": 8,
            "adapt.iterations": iterations,
            "adapt.batch_size": 1,
            "runtime.workers": 1,
        }
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Index]:
    folder = tmp_path_factory.mktemp("sets")
    write_gta(folder / "game", 4, size=(36, 68), processes=1)
    write_cityscapes(folder / "city", {"train": 4}, size=(32, 64), processes=1)
    source, target = (
        convert_split(
            load_layout(layout),
            folder / raw,
            "train",
            folder / f"converted {raw}",
            space=CITYSCAPES,
            with_labels=labelled,
        )
        for layout, raw, labelled in (("gta", "game", True), ("cityscapes", "city", False))
    )
    return source, target


def test_25_000_images_in_the_index(sets: tuple[Index, Index], tmp_path: Path) -> None:
    source = sets[0]
    record = source.records[0]
    records = tuple(replace(record, name=f"{number:06}") for number in range(25_000))
    write_index(replace(source, folder=tmp_path, records=records))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    index = read_index(tmp_path)
    check_raw_files(index)
    params = load_params(1)
    samples = SourceSamples([index], params.images, params.sampling, 0, "load")
    ready = time.monotonic() - start
    start = time.monotonic()
    for i in range(200):
        samples.file(i)
    drawn = (time.monotonic() - start) / 200
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"ready after {ready:.1f} s, {drawn * 1e3:.2f} ms a draw, {grown:.0f} MiB")
    assert len(index.records) == 25_000
    assert grown < 500


def test_2000_steps_grow_neither_memory_nor_open_files(
    sets: tuple[Index, Index], tmp_path: Path
) -> None:
    source, target = sets
    params = load_params(2000)
    networks = start_networks(imagenet_network(params, 19), target, params)
    optimiser = create_optimiser(networks.student, params.adapt.optimiser)
    process = psutil.Process()
    writer = StateWriter(tmp_path, print)
    seen: dict[int, tuple[float, int]] = {}
    steps = adapt_steps(networks, [source], target, params, CITYSCAPES, Progress(optimiser, 0))
    everything = {"student": networks.student, "teacher": networks.teacher}
    for record in steps:
        if record.step % 50 == 0 and not writer.is_busy():
            writer.start(State(record.step, copy_tensors(everything, optimiser), {}))
        if record.step % 100 == 99:
            seen[record.step] = (process.memory_info().rss / 2**20, process.num_fds())
    writer.wait()
    print(seen)
    assert record.step == 1999
    assert seen[1999][0] < seen[499][0] * 1.05 + 20
    assert seen[1999][1] <= seen[499][1]
    assert len(list(tmp_path.glob("*.state"))) == 2


def test_10_000_points_do_not_slow_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a step spends on logging, against 0.2 s that a small step takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("dvc.yaml").write_text("stages: {}\n")
    spent = 0.0
    with stage_run("adapt", make_params()) as run:
        for step in range(1, 501):
            start = time.thread_time()
            run.metrics({f"metric_{number}": float(step) for number in range(20)}, step)
            run.release(step - step % 50)
            spent += time.thread_time() - start
            torch.rand(300, 300) @ torch.rand(300, 300)
        closing = time.monotonic()
    print(f"{spent / 500 * 1e3:.3f} ms a step, {time.monotonic() - closing:.1f} s at the end")
    assert sum(len(points) for points in run.journal.metrics.values()) == 10_000
    assert spent / 500 < 0.02 * 0.2
