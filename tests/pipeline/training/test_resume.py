"""Killed at any moment and started again, a stage ends as if nothing had been."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from demo.scenes import write_cityscapes, write_gta
from pipeline import adapt, command, convert, inventory, pretrain
from pipeline.checks.finished import stage_key
from pipeline.training import loop
from pipeline.training.state import FINISHED, remove_old_states
from ssda import files
from ssda.datasets.image_files import write_png
from ssda.engine.training import StepRecord
from ssda.labels import LabelSpace
from ssda.params import load_params
from tests.conftest import ROOT
from tests.pipeline.test_stages import write_params

STEPS = 5
OUTPUTS = (
    "models/adapted.safetensors",
    "models/student.safetensors",
    "metrics/adapt/losses.csv",
    "metrics/adapt/classes.csv",
    "metrics/adapt/validation.csv",
    "metrics/adapt/pictures/000001.png",
    "metrics/adapt/pictures/000004.png",
    "metrics/logged/adapt.json",
    "metrics/adapt.json",
)
SHORT = {
    "runtime.picture_every": 4,
    "pretrain.iterations": STEPS,
    "adapt.iterations": STEPS,
    "adapt.validate_every": 3,
    "runtime.save_every": 1,
}
STAGES = {"pretrain": pretrain.pretrain, "adapt": adapt.adapt}
# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", __name__])


def draw(path: Path, record: StepRecord, space: LabelSpace) -> None:
    """A picture of a step without the figure around it, which takes longer than the step."""
    write_png(path, next(iter(record.report.images.values()))[0, 0].mul(255).byte().numpy())


def run_stage(stage: str, disk_seconds: float, limit: int | None) -> None:
    """What a child process does: the stage, with a disk that takes its time or is small."""
    multiprocessing.set_start_method("fork", force=True)  # of processes that load images
    loop.draw_step = draw
    os.environ["DVC_STAGE"] = stage
    sync = files.os.fsync

    def slow_sync(descriptor: int) -> None:
        time.sleep(disk_seconds)
        sync(descriptor)

    if disk_seconds:
        files.os.fsync = slow_sync
    if limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with open("output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    command.guard(lambda: STAGES[stage](load_params()), debug=False)


def start(stage: str = "adapt", disk_seconds: float = 0.0, limit: int | None = None) -> BaseProcess:
    child = context.Process(target=run_stage, args=(stage, disk_seconds, limit))
    child.start()
    return child


def finish(child: BaseProcess) -> str:
    """Wait for a child; returns what it said beside where it is."""
    child.join(120)
    assert child.exitcode is not None, "still running"
    return beside_where(Path("output.txt").read_text())


def beside_where(said: str) -> str:
    """What a stage said beside the lines that begin with its name."""
    lines = said.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("pretrain: ", "adapt: ")))


def states(stage: str = "adapt") -> list[Path]:
    found = Path(".ssda/state").glob(f"{stage}-*/*.state")
    return sorted(path for path in found if path.stem.isdigit())


def wait_for_state(child: BaseProcess, step: int, stage: str = "adapt") -> None:
    while child.is_alive() and not any(int(p.stem) >= step for p in states(stage)):
        time.sleep(0.005)


def outputs() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in OUTPUTS}


def curves() -> list[dict[str, list[tuple[int, float]]]]:
    """The curves of each MLflow run that has any of adapt, but for those of its speed."""
    client = MlflowClient("sqlite:///mlflow.db")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [
        {
            name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
            if name.startswith("adapt/") and not name.startswith("adapt/speed.")
        }
        for run in found
        if any(name.startswith("adapt/") for name in run.data.metrics)
    ]


FOLDERS = (".ssda", "mlruns", "models", "metrics")
"""With mlflow.db all that stages leave."""


def keep(name: str) -> None:
    """Copy what stages have left so far to a folder."""
    for folder in FOLDERS:
        shutil.copytree(folder, f"{name}/{folder}")
    shutil.copy("mlflow.db", name)


def restore(name: str) -> None:
    """Make all as it was when it was kept."""
    for folder in FOLDERS:
        shutil.rmtree(folder)
    Path("mlflow.db-journal").unlink(missing_ok=True)
    shutil.copytree(name, ".", dirs_exist_ok=True)


@pytest.fixture(scope="module")
def finished(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace whose folders hold what was there before an adaptation and after it."""
    folder = tmp_path_factory.mktemp("workspace")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("DVC_ROOT", str(folder))
    patch.setenv("PYTHONPATH", str(ROOT))  # of the server that forks the children
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_gta(folder / "raw/game", 4, size=(36, 68), processes=1)
    write_cityscapes(folder / "raw/city", {"train": 4, "val": 2}, size=(32, 64), processes=1)
    shutil.copy(database, folder)
    params = write_params(folder, SHORT)
    inventory.inventory(params, "game")
    convert.main(params)
    assert finish(start("pretrain")) == ""
    keep("before")
    assert finish(start()) == ""
    keep("after")
    yield folder
    patch.undo()


@pytest.fixture
def unbroken(finished: Path) -> dict[str, bytes]:
    """The workspace as it was before adaptation; returns what an unbroken one gives."""
    restore("before")
    return {name: (finished / "after" / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def killed(finished: Path) -> str:
    """The folder of what one leaves that was killed once its third step was saved."""
    restore("before")
    child = start()
    wait_for_state(child, 3)
    child.kill()
    child.join()
    keep("killed")
    return "killed"


def check_nothing_lost(unbroken: dict[str, bytes]) -> None:
    assert outputs() == unbroken
    pictures = Path("mlruns").glob("*/*/artifacts/adapt/pictures/*")
    assert sorted(path.name for path in pictures) == ["000001.png", "000004.png"]
    (run,) = curves()
    logged = json.loads(unbroken["metrics/logged/adapt.json"])["metrics"]
    assert {name: sorted(points) for name, points in run.items()} == {
        name: [tuple(point) for point in points] for name, points in logged.items()
    }


def test_pictures_change_nothing(unbroken: dict[str, bytes]) -> None:
    write_params(Path(), SHORT | {"runtime.picture_every": 0})
    finish(start())
    write_params(Path(), SHORT)
    names = [name for name in OUTPUTS if "pictures" not in name and "logged" not in name]
    assert {name: Path(name).read_bytes() for name in names} == {
        name: unbroken[name] for name in names
    }
    assert not any(Path("metrics/adapt/pictures").iterdir())


def kill_once(rng: random.Random) -> None:
    child = start()
    wait_for_state(child, rng.randrange(STEPS + 1))
    time.sleep(rng.uniform(0.0, 0.3))
    child.kill()
    child.join()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))]
)
def test_killed_at_random_points_the_weights_are_the_same_bit_by_bit(
    unbroken: dict[str, bytes], seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(2):
        kill_once(rng)
    finish(start())
    check_nothing_lost(unbroken)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 10))]
)
def test_killed_while_saving(unbroken: dict[str, bytes], seed: int) -> None:
    """The disk is so slow that some state is always being written."""
    child = start(disk_seconds=0.2)
    wait_for_state(child, seed % 2)  # the first save, or the one after it
    while child.is_alive() and not list(Path(".ssda/state").glob("*/*.partial.state")):
        time.sleep(0.001)
    child.kill()
    child.join()
    assert list(Path(".ssda/state").glob("*/*.partial.state"))
    finish(start())
    assert not list(Path(".ssda/state").glob("*/*.partial.state"))
    check_nothing_lost(unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(unbroken: dict[str, bytes], number: signal.Signals) -> None:
    child = start()
    wait_for_state(child, 2)
    assert child.pid is not None
    os.kill(child.pid, number)
    said = finish(child)
    assert child.exitcode == 128 + number
    last = int(states()[-1].stem)
    assert said == (
        f"stopped by {number.name} after step {last}; saved after step {last}: "
        "the same command goes on there\n"
    )
    assert finish(start()) == f"going on after step {last}\n"
    check_nothing_lost(unbroken)


def run_below_a_parent() -> None:
    """A stand-in for DVC: starts the stage and waits."""
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        run_stage("adapt", 0.0, None)


def test_a_trainer_whose_parent_was_killed_saves_and_stops(unbroken: dict[str, bytes]) -> None:
    """As `kill -9` of dvc does, which leaves what it started."""
    parent = context.Process(target=run_below_a_parent)
    parent.start()
    wait_for_state(parent, 1)
    (trainer,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.join()
    trainer.wait(60)
    said = beside_where(Path("output.txt").read_text())
    assert said.startswith(f"stopped, as process {parent.pid}, which started it, is gone after")
    finish(start())
    check_nothing_lost(unbroken)


@pytest.mark.soak
def test_a_process_that_dies_ends_the_others_and_a_restart_goes_on(
    unbroken: dict[str, bytes],
) -> None:
    """Two processes are one but for the order of sums, also when the second one was killed."""
    environment = os.environ | {"NPROC": "2", "RESTARTS": "1"}
    command = [sys.executable, "-m", "pipeline.adapt"]
    with open("output.txt", "w") as output:
        parent = psutil.Popen(command, env=environment, stdout=output, stderr=output)
    while parent.poll() is None and not states():
        time.sleep(0.005)
    second = [p for p in parent.children() if p.environ().get("RANK") == "1"]
    second[0].kill()
    assert parent.wait(100) == 0, Path("output.txt").read_text()
    assert "going on after step" in Path("output.txt").read_text()
    logged = json.loads(unbroken["metrics/logged/adapt.json"])["metrics"]
    (run,) = curves()
    for name in ("adapt/loss_source", "adapt/loss_mix"):
        assert [step for step, _ in run[name]] == [step for step, _ in logged[name]]
        values, expected = ([value for _, value in points] for points in (run[name], logged[name]))
        assert values == pytest.approx(expected, rel=0.02)


def test_a_damaged_state_falls_back_to_the_one_before(
    killed: str, unbroken: dict[str, bytes]
) -> None:
    restore(killed)
    *_, before, newest = states()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    damaged, whole = f"{newest.stem}.state: damaged", f"going on after step {int(before.stem)}\n"
    said = finish(start())
    assert damaged in said and said.endswith(whole)
    check_nothing_lost(unbroken)


def test_two_trainers_never_share_a_state(
    unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    wait_for_state(first, 1)
    psutil.Process(first.pid).suspend()
    monkeypatch.setattr("pipeline.training.state.PATIENCE", 0.0)
    with pytest.raises(
        ValueError, match=rf"process {first.pid} on .* trains on the same state; stop it first"
    ):
        adapt.adapt(load_params())
    psutil.Process(first.pid).resume()
    finish(first)
    check_nothing_lost(unbroken)


def test_dying_after_the_last_step_loses_nothing(unbroken: dict[str, bytes]) -> None:
    """DVC removes a stage's outputs before it starts it again."""
    restore("after")
    for name in OUTPUTS:
        Path(name).unlink()
    assert finish(start()) == f"going on after step {STEPS}\n"
    check_nothing_lost(unbroken)


def test_a_state_is_removed_when_dvc_has_the_result(finished: Path) -> None:
    restore("after")
    (marker,) = Path(".ssda/state").glob(f"adapt-*/{FINISHED}")
    ((path, md5),) = json.loads(marker.read_text()).items()
    lock = Path("dvc.lock")
    lock.write_text(f"stages: {{adapt: {{outs: [{{path: {path}, md5: other}}]}}}}\n")
    remove_old_states()
    assert marker.exists()
    lock.write_text(f"stages: {{adapt: {{outs: [{{path: {path}, md5: {md5}}}]}}}}\n")
    remove_old_states()
    assert not marker.parent.exists()
    lock.unlink()


def test_a_state_that_nobody_touches_is_removed_in_the_end(finished: Path) -> None:
    old, young = Path(".ssda/state/adapt-old"), Path(".ssda/state/adapt-young")
    for folder in (old, young):
        folder.mkdir(parents=True)
    month = time.time() - 31 * 86400
    os.utime(old, (month, month))
    remove_old_states()
    assert young.exists() and not old.exists()


def test_the_key_follows_params_code_and_data(finished: Path) -> None:
    params = load_params()
    keys = [stage_key("adapt", params), stage_key("pretrain", params)]
    radius = params.adapt.trucrf.model_copy(update={"radius": 2})
    changed = params.model_copy(
        update={"adapt": params.adapt.model_copy(update={"trucrf": radius})}
    )
    keys.append(stage_key("adapt", changed))
    assert stage_key("pretrain", changed) == keys[1]
    runtime = params.runtime.model_copy(update={"workers": 7})
    assert stage_key("adapt", params.model_copy(update={"runtime": runtime})) == keys[0]
    label = next(Path("data/converted/sources/game/labels").iterdir())
    content = label.read_bytes()
    label.write_bytes(content + b" ")
    keys.append(stage_key("adapt", params))
    label.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.checks.finished.CODE", Path("code"))
        shutil.copytree(ROOT / "ssda", "code/ssda", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "dvc.yaml", "code/dvc.yaml")
        keys.append(stage_key("adapt", params))
        with open("code/ssda/method/trucrf.py", "a") as file:
            file.write("# changed\n")
        keys.append(stage_key("adapt", params))
    shutil.rmtree("code")
    assert len(set(keys)) == len(keys)


def test_a_full_disk_while_saving_costs_a_line_and_no_state(unbroken: dict[str, bytes]) -> None:
    """The file limit stands for the disk: no state fits, the networks do."""
    network = Path("after/models/adapted.safetensors").stat().st_size
    said = finish(start(limit=3 * network))
    lines = said.splitlines()
    assert lines  # a state that is due while another is being written is left out
    for line in lines:
        assert re.match(r"warning: state of step \d not saved: \[Errno 27\]", line), line
    assert not states()
    assert outputs() == unbroken


def test_a_full_disk_while_writing_the_networks_is_one_line(
    killed: str, unbroken: dict[str, bytes]
) -> None:
    restore(killed)
    network = Path("after/models/adapted.safetensors").stat().st_size
    child = start(limit=network // 2)
    said = finish(child)
    assert child.exitcode == 1
    assert said.splitlines()[-1].startswith("error: models/student.safetensors: ")
    assert "Traceback" not in said
    assert not list(Path("models").glob("*partial*"))
    finish(start())
    check_nothing_lost(unbroken)


def kill_loader(child: BaseProcess) -> None:
    """Kill a process that loads images: PyTorch names its thread so. MLflow starts others."""
    while child.is_alive():
        for process in psutil.Process(child.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "pt_data_worker":
                    process.kill()
                    return
        time.sleep(0.005)


def test_a_killed_loader_is_one_line_and_nothing_is_lost(unbroken: dict[str, bytes]) -> None:
    write_params(Path(), SHORT | {"runtime.workers": 1})
    child = start(disk_seconds=0.1)  # so that images are still to come when it is killed
    kill_loader(child)
    said = finish(child)
    write_params(Path(), SHORT)
    assert child.exitcode == 1
    assert said.startswith("error: a process that loads images ended") and said.count("\n") == 1
    finish(start())
    check_nothing_lost(unbroken)
