"""MLflow's runs against a small repository in which DVC ran, and no tracking server was there."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.paths import ADAPTED
from pipeline.tracking.server import connect
from pipeline.tracking.sync import checkout, register, sync
from ssda.params import Params, load_params
from tests.conftest import ROOT

# MLflow's own use of SQLAlchemy, and its own classes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred"),
]

STAGE = """
import json, sys
from pathlib import Path
from pipeline.tracking.journal import Journal, write_journal
from ssda.params import load_params

stage, radius = sys.argv[1], load_params("params.yaml").adapt.trucrf.radius
Path(f"metrics/{stage}").mkdir()
Path(f"metrics/{stage}/{stage}.csv").write_text(f"{radius}\\n")
Path(f"{stage}.safetensors").write_bytes(f"{stage} {radius}".encode())
points = {f"{stage}/loss": {1: 0.5, 2: float(radius)}}
write_journal(Journal(stage, points, {f"metrics/{stage}/{stage}.csv": ""}), Path())
"""
PIPELINE = f"""
stages:
  pretrain:
    cmd: {sys.executable} stage.py pretrain
    deps: [stage.py]
    params: [pretrain]
    outs: [pretrain.safetensors, metrics/pretrain, metrics/logged/pretrain.json]
  adapt:
    cmd: {sys.executable} stage.py adapt
    deps: [stage.py, pretrain.safetensors]
    params: [adapt]
    outs: [adapt.safetensors, metrics/adapt, metrics/logged/adapt.json]
"""
STAGES = "pretrain, adapt"


def command(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def dvc(*words: str) -> str:
    return command(sys.executable, "-m", "dvc", *words)


def environment(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        patch.delenv(name, raising=False)
    patch.setenv("PYTHONPATH", str(ROOT))
    for name in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{name}_NAME", "a")
        patch.setenv(f"GIT_{name}_EMAIL", "a@b")


@pytest.fixture(scope="module")
def synced(database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A commit that DVC reproduced, an experiment, and what the first sync says."""
    folder = tmp_path_factory.mktemp("synced")
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, folder)
        shutil.copy(database, folder)
        command("git", "init", "-q", "-b", "main")
        dvc("init", "-q")
        Path("dvc.yaml").write_text(PIPELINE)
        Path("stage.py").write_text(STAGE)
        Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        Path("metrics").mkdir()
        Path(".gitignore").write_text("/metrics\n/*.safetensors\n/mlflow.db\n/mlruns\n")
        dvc("repro", "-q")
        command("git", "add", ".")
        command("git", "commit", "-q", "-m", "first")
        dvc("exp", "run", "-q", "--temp", "-n", "blue-cat", "-S", "adapt.trucrf.radius=3")
        lines = sync(load_params("params.yaml"))
    return folder, lines


@pytest.fixture
def params(
    synced: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Params:
    """Params of a copy of the repository and its database, the current folder."""
    shutil.copytree(synced[0], tmp_path / "copy")
    environment(monkeypatch, tmp_path / "copy")
    params = load_params("params.yaml")
    connect(params)  # which sees that it is a copy
    return params


def client() -> MlflowClient:
    return MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}")


def runs() -> dict[str, Run]:
    found = client().search_runs(["1"], order_by=["start_time"])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name or "": run for run in found}


def state() -> object:
    """All that MLflow knows."""
    return [
        (
            run.to_dictionary(),
            [client().get_metric_history(run.info.run_id, n) for n in run.data.metrics],
        )
        for run in runs().values()
    ]


def test_experiments_and_the_commit_get_the_runs_they_lack(
    synced: tuple[Path, list[str]], params: Params
) -> None:
    commit = command("git", "rev-parse", "HEAD")
    assert synced[1] == [
        f"blue-cat: filled in {STAGES}",
        f"commit {commit[:7]}: filled in {STAGES}",
    ]
    experiment, repro = runs().values()
    assert (experiment.info.run_name, repro.info.run_name) == ("blue-cat", f"repro-{commit[:7]}")
    for run, radius in ((experiment, 3), (repro, params.adapt.trucrf.radius)):
        assert run.info.status == "FINISHED"
        assert run.data.params["adapt.trucrf.radius"] == str(radius)
        assert run.data.metrics == {"pretrain/loss": 5, "adapt/loss": radius}
        assert run.data.tags["mlflow.source.git.commit"] == commit
        assert run.data.tags["dvc.reused.adapt"] == "true"
        assert run.data.tags["dvc.md5.adapt.safetensors"] == md5(f"adapt {radius}")
        files = {file.path for file in client().list_artifacts(run.info.run_id)}
        assert files == {"pretrain.csv", "adapt.csv", "params.yaml"}
    assert "`adapt.trucrf.radius=3`" in experiment.data.tags["mlflow.note.content"]
    assert "not committed" not in experiment.data.tags["mlflow.note.content"]


def md5(content: str) -> str:
    return hashlib.md5(content.encode()).hexdigest()


def test_a_second_time_changes_nothing(params: Params) -> None:
    before = state()
    assert sync(params) == ["nothing to fill in"]
    dvc("exp", "apply", "blue-cat")
    assert sync(load_params("params.yaml")) == ["nothing to fill in"]
    assert state() == before


def test_a_moved_folder_keeps_its_artifacts_itself(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy moves once more; in a fresh process, for MLflow remembers where artifacts are."""
    old, new = Path.cwd(), Path.cwd().with_name("new place")
    old.rename(new)
    monkeypatch.chdir(new)
    run = runs()["blue-cat"]
    client().delete_tag(run.info.run_id, "dvc.stage.adapt")
    [lost] = Path("mlruns").rglob(f"{run.info.run_id}/artifacts/adapt.csv")
    lost.unlink()
    twice = "from pipeline.tracking.__main__ import main; main(); main()"
    done = subprocess.run([sys.executable, "-c", twice, "sync"], capture_output=True, text=True)
    assert done.stdout == "blue-cat: filled in adapt\nnothing to fill in\n"
    assert f"MLflow: this folder was {old}; artifacts" in done.stderr
    assert done.stderr.count("\n") == 1
    assert lost.read_text() == "3\n" and not old.exists()
    made = client().create_run(run.info.experiment_id)
    for info in (made.info, runs()["blue-cat"].info):
        assert (info.artifact_uri or "").startswith(Path("mlruns").resolve().as_uri())


def test_one_stage_that_is_missing_is_filled_in(params: Params) -> None:
    run = runs()["blue-cat"]
    client().delete_tag(run.info.run_id, "dvc.stage.adapt")
    assert sync(params) == ["blue-cat: filled in adapt"]
    assert runs()["blue-cat"].data.to_dictionary() == run.data.to_dictionary()


def test_what_dvc_lock_has_otherwise_is_not_filled_in(params: Params) -> None:
    before = state()
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("teacher_momentum: 0.98", "teacher_momentum: 0.9"))
    (line,) = sync(load_params("params.yaml"))
    assert line.startswith("workspace: changed since")
    assert state() == before
    command("git", "commit", "-q", "-a", "-m", "changed, not reproduced")
    assert sync(load_params("params.yaml")) == [line]
    assert state() == before
    dvc("repro", "-q")
    assert sync(load_params("params.yaml")) == [f"workspace: filled in {STAGES}"]


def test_an_older_commit_s_experiments_are_asked_for(params: Params) -> None:
    Path("other").write_text("\n")
    command("git", "add", "other")
    command("git", "commit", "-q", "-m", "second")
    client().delete_run(runs()["blue-cat"].info.run_id)
    assert sync(params) == ["nothing to fill in"]
    assert sync(params, all_commits=True) == [f"blue-cat: filled in {STAGES}"]


def test_what_the_cache_has_lost_costs_a_line(params: Params) -> None:
    client().delete_run(runs()["blue-cat"].info.run_id)
    shutil.rmtree(".dvc/cache")
    line = sync(params)[0]
    assert line.startswith("blue-cat: left out, DVC has not all of metrics")
    with pytest.raises(ValueError, match=r"neither in DVC's cache nor in its remote") as caught:
        checkout(params, next(iter(runs())), None)
    assert "\n" not in str(caught.value) and not Path("runs").exists()


def test_a_server_that_is_down_is_one_line(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    for work in (lambda: sync(params), lambda: checkout(params, "blue-cat", None)):
        with pytest.raises(ValueError, match=r"^MLflow \(http://127.0.0.1:9\)") as caught:
            work()
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_checkout_gets_params_and_networks_from_anywhere(params: Params, tmp_path: Path) -> None:
    """From DVC's remote when the cache lacks them, and without DVC's experiment."""
    store = tmp_path / "store"
    shutil.move(".dvc/cache", store)
    Path(".dvc/config.local").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n"
    )
    (reference,) = command("git", "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    command("git", "update-ref", "-d", reference)
    run_id = runs()["blue-cat"].info.run_id
    for name, out, folder in (("blue-cat", None, "runs/blue-cat"), (run_id, Path("a b"), "a b")):
        files = [
            f"{folder}/{name}"
            for name in ("params.yaml", "adapt.safetensors", "pretrain.safetensors")
        ]
        assert sorted(checkout(params, name, out)) == sorted(files)
        assert Path(folder, "adapt.safetensors").read_text() == "adapt 3"
        found = load_params(f"{folder}/params.yaml")
        assert found.adapt.trucrf.radius == 3 and found.pretrain == params.pretrain
        assert found.runtime == params.runtime
        Path(folder, "adapt.safetensors").write_text("one may write here")


def test_a_run_is_registered_after_the_fact(params: Params) -> None:
    """Without DVC's experiment: the network comes from DVC's cache, and is logged once."""
    run = runs()["blue-cat"]
    md5 = run.data.tags["dvc.md5.adapt.safetensors"]
    with pytest.raises(
        ValueError, match=r"^run blue-cat: has left no models/adapted\.safetensors$"
    ):
        register(params, "blue-cat", "street")
    client().set_tag(run.info.run_id, f"dvc.md5.{ADAPTED}", md5)
    for number in (1, 2):
        (line,) = register(params, "blue-cat", "street")
        assert f"street: version {number}; " in line and '"models:/street@adapted"' in line
    outputs = runs()["blue-cat"].outputs
    assert outputs
    (model,) = outputs.model_outputs
    version = client().get_model_version_by_alias("street", "adapted")
    location = client().get_logged_model(model.model_id).artifact_location
    assert (version.version, version.source) == (2, location)
    file = Path(location.removeprefix("file://"), "data/adapted.safetensors")
    assert file.read_text() == "adapt 3"
    with pytest.raises(ValueError, match=r"^name: register = 'a/b': ") as caught:
        register(params, "blue-cat", "a/b")
    assert "\n" not in str(caught.value)


def test_checkout_wants_one_run(params: Params) -> None:
    with pytest.raises(ValueError, match="no run has the name or id red-dog"):
        checkout(params, "red-dog", None)
    first, second = (run.info.run_id for run in runs().values())
    client().update_run(second, name="blue-cat")
    with pytest.raises(ValueError, match="2 runs have the name blue-cat") as caught:
        checkout(params, "blue-cat", None)
    assert first in str(caught.value) and second in str(caught.value)
    empty = client().create_run("1", run_name="empty").info.run_name
    with pytest.raises(ValueError, match="run empty: no stage of it has left a network"):
        checkout(params, empty or "", None)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    words = [sys.executable, "-m", "pipeline.tracking", "sync"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
