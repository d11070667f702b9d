import getpass
import hashlib
import json
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import ssda
from pipeline.paths import ADAPTED
from pipeline.repository import root as repository_root
from pipeline.tracking.journal import JOURNALS, Journal, from_content, write_journal
from pipeline.tracking.run import stage_run
from pipeline.tracking.server import VIEW, ServerRun, run_key, tracking_uri, unreachable
from pipeline.values import flat, nested
from ssda.engine.checkpoints import save_network
from ssda.files import write_json
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Params, load_params
from tests.conftest import ROOT, SMALL_NETWORK, make_model

# MLflow's own use of SQLAlchemy, and its own classes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred"),
]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def root(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main repository; each test has an experiment in its database."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copy(database, folder)
    return folder


@pytest.fixture
def params(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Params:
    """Params of a stage that DVC runs in a workspace of its own, the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("DVC_STAGE", "some")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", COMMIT)
    Path("code.py").write_text("print('one')\n")
    write_stages(convert="deps: [code.py, data]", pretrain="", adapt="", evaluate="")
    loaded = load_params(ROOT / "params.yaml")
    runtime = loaded.runtime.model_copy(update={"experiment": request.node.name})
    return loaded.model_copy(update={"runtime": runtime})


def write_stages(**stages: str) -> None:
    """A dvc.yaml of stages that leave a journal, with what more each has."""
    lines = [
        f"  {name}: {{cmd: none, outs: [{JOURNALS}/{name}.json], {more}}}\n"
        for name, more in stages.items()
    ]
    Path("dvc.yaml").write_text("stages:\n" + "".join(lines))


def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def runs(root: Path, params: Params) -> list[Run]:
    """The experiment's runs, the oldest first."""
    experiment = client(root).get_experiment_by_name(params.runtime.experiment)
    if experiment is None:
        return []
    return list(client(root).search_runs([experiment.experiment_id], order_by=["start_time"]))


def curve(root: Path, run: Run, name: str) -> list[tuple[int, float]]:
    history = client(root).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def work(stage: str, params: Params, steps: int = 3) -> None:
    with stage_run(stage, params) as run:
        for step in range(steps):
            run.metrics({"loss": step / 2}, step)


def with_radius(params: Params, radius: int) -> Params:
    trucrf = params.adapt.trucrf.model_copy(update={"radius": radius})
    return params.model_copy(update={"adapt": params.adapt.model_copy(update={"trucrf": trucrf})})


def test_stages_share_one_run(params: Params, root: Path) -> None:
    Path("picture.png").write_bytes(b"picture")
    work("pretrain", params)
    with stage_run("evaluate", params) as stage:
        (open_run,) = runs(root, params)
        assert open_run.info.status == "RUNNING"
        stage.tag("device", "cpu")
        stage.metrics({"miou": 50.0})
        stage.artifact(Path("picture.png"), "pictures")
        stage.text(lambda: "Grüße", "report.html")
    (run,) = runs(root, params)
    [report] = (root / "mlruns").rglob("artifacts/report.html")
    assert report.read_text(encoding="utf-8") == "Grüße" and run.info.run_id in report.parts
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"repro-{COMMIT[:7]}"
    assert curve(root, run, "pretrain/loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert run.data.metrics["eval/miou"] == 50.0
    assert run.data.params["adapt.trucrf.radius"] == str(params.adapt.trucrf.radius)
    assert json.loads(run.data.params["images.crop"]) == list(params.images.crop)
    assert not any(name.startswith("runtime") for name in run.data.params)
    expected = {
        "dvc.run_key": run_key(params, Path(), ""),
        "dvc.stage.pretrain": "finished",
        "dvc.stage.evaluate": "finished",
        "mlflow.source.git.commit": COMMIT,
        "mlflow.source.name": "dvc repro",
        "mlflow.user": getpass.getuser(),
        "host": socket.gethostname(),
        "device": "cpu",
    }
    assert expected.items() <= run.data.tags.items()
    assert not any(name.startswith("dvc.reused") for name in run.data.tags)
    (picture,) = client(root).list_artifacts(run.info.run_id, "pictures")
    assert picture.path == "pictures/picture.png"
    assert run.info.artifact_uri.startswith((root / "mlruns").as_uri())


def test_headline_numbers_have_short_names_and_are_sent_once(params: Params, root: Path) -> None:
    with stage_run("evaluate", params) as stage:
        stage.headline({"mIoU": 50.0, "mIoU/source_only": None, "mIoU/gain": 2.0})
        stage.metrics({"adapted.miou": 50.0})
    (run,) = runs(root, params)
    assert run.data.metrics == {"mIoU": 50.0, "mIoU/gain": 2.0, "eval/adapted.miou": 50.0}
    ServerRun(client(root), run).fill_in(stage.journal, Path())
    for name in run.data.metrics:
        assert len(curve(root, run, name)) == 1


def test_the_list_of_runs_says_what_it_shows(params: Params, root: Path) -> None:
    """Also that of an experiment that was made by hand, whose own description stays."""
    name = params.runtime.experiment
    client(root).create_experiment(name, tags={"mlflow.note.content": "mine"})
    work("convert", params)
    experiment = client(root).get_experiment_by_name(name)
    assert experiment and experiment.tags["mlflow.note.content"] == "mine"
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{VIEW}"])
    assert view["selectedColumns"][:2] == ["metrics.`mIoU`", "metrics.`mIoU/source_only`"]
    (run,) = runs(root, params)
    assert run.data.metrics.keys() == {"convert/loss"}
    path = client(root).download_artifacts(run.info.run_id, "params.yaml")
    assert load_params(path) == params


def test_a_run_names_the_sets_that_its_stages_read(params: Params, root: Path) -> None:
    sets = "data/converted/target"
    write_stages(convert="", pretrain=f"deps: [data/converted/sources, {sets}/validation]")
    lock = [f"{{path: {sets}/validation, md5: {'a' * 32}.dir}}"]
    lock += [f"{{path: data/converted/sources, md5: {'b' * 32}.dir}}"]
    Path("dvc.lock").write_text(f"stages: {{convert: {{outs: [{', '.join(lock)}]}}}}")
    counts = {"game": {"images": 400}}, {"train": {"images": 9}, "validation": {"images": 60}}
    facts = dict(zip(("sources", "target"), counts, strict=True)) | {"class_shares": {"road": 1.0}}
    write_json(Path("metrics/convert.json"), facts)
    work("convert", params)
    assert not runs(root, params)[0].inputs.dataset_inputs
    work("pretrain", params)
    found = {
        entry.dataset.name: (
            entry.dataset.digest[0],
            json.loads(entry.dataset.profile)["num_rows"],
            entry.tags[0].value,
        )
        for entry in runs(root, params)[0].inputs.dataset_inputs
    }
    assert found == {
        "sources/game": ("b", 400, "training"),
        "target/validation": ("a", 60, "validation"),
    }


def test_journal_is_deterministic(params: Params) -> None:
    journal = JOURNALS / "adapt.json"
    contents: list[str] = []
    for names in (("a", "b"), ("b", "a")):
        with stage_run("adapt", params) as run:
            for step in (0, 10):
                for name in names:
                    run.metrics({name: 1 / 3}, step)
            run.artifact(Path("code.py").absolute())
        contents.append(journal.read_text())
    assert contents[0] == contents[1]
    third = [[0, 1 / 3], [10, 1 / 3]]
    assert json.loads(contents[0]) == {
        "stage": "adapt",
        "metrics": {"adapt/a": third, "adapt/b": third},
        "artifacts": {"code.py": ""},
    }
    assert [path.name for path in JOURNALS.iterdir()] == ["adapt.json"]


def test_values_that_are_no_number_are_skipped(params: Params, root: Path) -> None:
    with stage_run("adapt", params) as run:
        run.metrics({"a": float("nan"), "b": float("inf"), "c": None, "d": 1.0}, 5)
    assert list(runs(root, params)[0].data.metrics) == ["adapt/d"]
    assert list(json.loads((JOURNALS / "adapt.json").read_text())["metrics"]) == ["adapt/d"]


def test_points_are_sent_once_their_step_is_saved(params: Params, root: Path) -> None:
    with stage_run("pretrain", params) as stage:
        (run,) = runs(root, params)
        for step in range(1, 31):
            stage.metrics({"loss": step / 2}, step)
        for saved, there in ((0, 0), (10, 10), (10, 10), (20, 20)):
            stage.release(saved)
            if stage.sending:
                stage.sending.result()
            assert len(curve(root, run, "pretrain/loss")) == there
    assert curve(root, run, "pretrain/loss") == [(step, step / 2) for step in range(1, 31)]


def test_a_slow_server_is_not_waited_for(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = MlflowClient.log_batch
    calls: list[int] = []

    def slowly(client: MlflowClient, *arguments: object, **more: object) -> None:
        calls.append(1)
        time.sleep(0.5)
        send(client, *arguments, **more)  # pyright: ignore[reportArgumentType]

    with stage_run("adapt", params) as stage:
        monkeypatch.setattr(MlflowClient, "log_batch", slowly)
        start = time.monotonic()
        for step in range(1, 101):
            stage.metrics({"loss": step / 2}, step)
            stage.release(step)
        assert time.monotonic() - start < 0.4
    assert len(calls) == 2, "what is left goes in one piece"
    (run,) = runs(root, params)
    assert len(curve(root, run, "adapt/loss")) == 100


@pytest.mark.soak  # SQLite waits for 20 seconds
def test_a_locked_database_costs_one_line(
    params: Params, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work("convert", params)  # makes the experiment
    with stage_run("adapt", params) as stage:
        with closing(sqlite3.connect(root / "mlflow.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            stage.metrics({"loss": 1.0}, 1)
            stage.release(1)
            assert stage.sending is not None
            stage.sending.result()
            other.execute("ROLLBACK")
        stage.metrics({"loss": 2.0}, 2)
    error = capsys.readouterr().err
    assert "database is locked" in error and error.count("\n") == 1
    assert curve(root, runs(root, params)[-1], "adapt/loss") == [(1, 1.0), (2, 2.0)]


def test_reused_stage_is_filled_in(params: Params, root: Path) -> None:
    Path("shares.csv").write_text("road,25\n")
    with stage_run("convert", params) as stage:
        stage.metrics({"images": 400})
        stage.artifact(Path("shares.csv"))
    work("pretrain", params)
    other = with_radius(params, 3)
    work("adapt", other)
    run = runs(root, params)[-1]
    assert run.data.params["adapt.trucrf.radius"] == "3"
    assert run.data.tags["dvc.reused.convert"] == run.data.tags["dvc.reused.pretrain"] == "true"
    assert "dvc.reused.adapt" not in run.data.tags
    assert run.data.metrics["convert/images"] == 400
    assert curve(root, run, "pretrain/loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    files = [file.path for file in client(root).list_artifacts(run.info.run_id)]
    assert files == ["params.yaml", "shares.csv"]


def test_without_dvc_nothing_is_filled_in(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work("pretrain", params)
    monkeypatch.delenv("DVC_STAGE")
    work("adapt", with_radius(params, 3))
    assert set(runs(root, params)[-1].data.metrics) == {"adapt/loss"}


def test_stage_that_runs_again_starts_a_fresh_run(params: Params, root: Path) -> None:
    work("pretrain", params)
    work("adapt", params)
    work("adapt", params)
    work("evaluate", params)
    old, new = runs(root, params)
    assert old.data.tags["dvc.superseded"] == new.info.run_id
    assert "eval/loss" not in old.data.metrics
    assert new.data.tags["dvc.reused.pretrain"] == "true"
    for name in ("pretrain/loss", "adapt/loss", "eval/loss"):
        assert curve(root, new, name) == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_interrupted_stage_goes_on(params: Params, root: Path) -> None:
    """With the journal that was saved with its state; what was not saved is told again."""
    with pytest.raises(RuntimeError, match="boom"), stage_run("adapt", params) as stage:
        stage.metrics({"loss": 0.0}, 1)
        stage.metrics({"loss": 0.5}, 2)
        stage.release(2)
        saved = json.loads(json.dumps(stage.journal.content()))
        stage.metrics({"loss": 0.9}, 3)
        raise RuntimeError("boom")
    (run,) = runs(root, params)
    assert run.info.status == "FAILED"
    assert curve(root, run, "adapt/loss") == [(1, 0.0), (2, 0.5)]
    assert "dvc.stage.adapt" not in run.data.tags
    assert not JOURNALS.exists()
    with stage_run("adapt", params, from_content(saved)) as stage:
        stage.metrics({"loss": 0.5}, 2)
        stage.metrics({"loss": 1.0}, 3)
    (run,) = runs(root, params)
    assert run.info.status == "FINISHED"
    expected = [(1, 0.0), (2, 0.5), (3, 1.0)]
    assert curve(root, run, "adapt/loss") == expected
    journal = json.loads((JOURNALS / "adapt.json").read_text())
    assert journal["metrics"]["adapt/loss"] == [list(point) for point in expected]


def test_points_that_were_saved_but_not_sent_are_sent_when_the_stage_goes_on(
    params: Params, root: Path
) -> None:
    with pytest.raises(RuntimeError, match="boom"), stage_run("adapt", params) as stage:
        stage.metrics({"loss": 0.0}, 1)
        saved = stage.journal.content()
        raise RuntimeError("boom")
    with stage_run("adapt", params, from_content(saved)) as stage:
        stage.metrics({"loss": 0.5}, 2)
    (run,) = runs(root, params)
    assert curve(root, run, "adapt/loss") == [(1, 0.0), (2, 0.5)]


def test_key_follows_all_that_makes_an_experiment(params: Params) -> None:
    keys = [run_key(params, Path(), "")]
    keys.append(run_key(with_radius(params, 3), Path(), ""))
    Path("code.py").write_text("print('two')\n")
    keys.append(run_key(params, Path(), ""))
    for name in ("demo/params.yaml", "data/inventory/game.json"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("{}")
        keys.append(run_key(params, Path(), ""))
    keys += [run_key(params, Path(), name) for name in ("blue-cat", "red-dog")]
    assert len(set(keys)) == len(keys)
    runtime = params.runtime.model_copy(update={"device": "cuda"})
    other = params.model_copy(update={"runtime": runtime})
    assert run_key(other, Path(), "red-dog") == keys[-1]


def test_params_come_back_from_their_texts(params: Params) -> None:
    values = params.model_dump(mode="json", exclude={"runtime"})
    assert nested(flat(params.model_dump(mode="json"))) == values
    for text in ("a b", "5", "null", "true", '"quoted"', "[1", ""):
        changed = params.model_copy(update={"labels": text})
        assert nested(flat(changed.model_dump(mode="json"))) == values | {"labels": text}


def test_a_run_names_the_networks_that_its_stages_left(params: Params, root: Path) -> None:
    """As dvc.lock does: by MD5. Of a reused stage dvc.lock has them."""
    write_stages(
        pretrain="metrics: [first.safetensors, log.txt]", adapt="metrics: [second.safetensors]"
    )
    Path("dvc.lock").write_text(
        "stages: {pretrain: {outs: [{path: first.safetensors, md5: abc}, {path: log.txt, md5: d}]}}"
    )
    write_journal(Journal("pretrain"), Path())
    with stage_run("adapt", params):
        Path("second.safetensors").write_bytes(b"weights")
    tags = runs(root, params)[0].data.tags
    assert {name: value for name, value in tags.items() if name.startswith("dvc.md5.")} == {
        "dvc.md5.first.safetensors": "abc",
        "dvc.md5.second.safetensors": hashlib.md5(b"weights").hexdigest(),
    }


def test_server_that_is_down_costs_one_line(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    start = time.monotonic()
    work("adapt", params)
    assert time.monotonic() - start < 8
    output = capsys.readouterr()
    assert output.err.startswith("warning: MLflow (http://127.0.0.1:9)")
    assert output.err.count("\n") == 1 and output.out == ""
    assert "secret" not in output.err
    points = json.loads((JOURNALS / "adapt.json").read_text())["metrics"]["adapt/loss"]
    assert points == [[0, 0.0], [1, 0.5], [2, 1.0]]


def test_what_a_server_missed_is_sent_at_the_end(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    with stage_run("adapt", params) as stage:
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, "log_batch", gone)
            for step in (1, 2):
                stage.metrics({"loss": step / 2}, step)
                stage.release(step)
                stage.sender.submit(int).result()
        stage.artifact(Path("code.py"))
    assert capsys.readouterr().err.count("\n") == 1
    (run,) = runs(root, params)
    assert run.info.status == "FINISHED"
    assert curve(root, run, "adapt/loss") == [(1, 0.5), (2, 1.0)]
    files = [file.path for file in client(root).list_artifacts(run.info.run_id)]
    assert files == ["code.py", "params.yaml"]
    assert "dvc.reused.adapt" not in run.data.tags


def test_only_the_first_process_logs(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    work("adapt", params)
    assert runs(root, params) == [] and not JOURNALS.exists()


def test_a_run_says_how_it_comes_back(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*command: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *names, *command], capture_output=True, check=True, text=True)
        return done.stdout.strip()

    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", commit := git("rev-parse", "HEAD"))
    target = params.target.model_copy(update={"root": "a b"})
    work("adapt", params)
    Path("code.py").write_text("changed\n")
    work("adapt", with_radius(params, 3).model_copy(update={"target": target}))
    monkeypatch.setenv("DVC_EXP_NAME", "blue-cat")
    work("adapt", with_radius(params, 3))
    repro, changed, experiment = [
        run.data.tags["mlflow.note.content"] for run in runs(root, params)
    ]
    assert f"\n\n    git checkout {commit}\n    dvc repro\n\n" in repro
    run_id = runs(root, params)[0].info.run_id
    assert repro.endswith(f"    python -m pipeline.tracking checkout {run_id}\n")
    assert "not committed" not in repro
    assert "changes of the code that were not committed" in changed
    assert "    dvc exp run -S 'target.root=a b' -S adapt.trucrf.radius=3\n\n" in changed
    assert "`blue-cat`" in experiment and "`adapt.trucrf.radius=3`" in experiment
    assert "\n\n    dvc exp apply blue-cat\n\n" in experiment


def test_register(
    params: Params,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime = params.runtime.model_copy(update={"register_as": "streets"})
    named = params.model_copy(update={"runtime": runtime})
    model = make_model(SMALL_NETWORK)
    save_network(ADAPTED, Segmenter(model, 19), model, CITYSCAPES)
    for _ in range(2):
        with stage_run("adapt", named) as stage:
            stage.model(ADAPTED, named.runtime.register_as)
    assert capsys.readouterr().err == ""
    version = client(root).get_model_version_by_alias("streets", "adapted")
    assert int(version.version) == 2
    run = runs(root, params)[-1]
    assert version.run_id == run.info.run_id
    assert run.outputs
    (output,) = run.outputs.model_outputs
    folder = Path(client(root).get_logged_model(output.model_id).artifact_location)
    images = np.random.default_rng(0).integers(0, 255, (2, 48, 80, 3), np.uint8)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
    loaded = mlflow.pyfunc.load_model("models:/streets@adapted")
    loader = loaded.metadata.flavors["python_function"]["loader_module"]
    assert loader.split(".")[0] == "ssda"  # the one package that is installed
    classes = loaded.predict(images)
    network = ssda.load(ADAPTED)
    assert classes.dtype == np.uint8 and len(np.unique(classes)) > 1
    for image, found in zip(images, classes, strict=True):
        assert np.array_equal(found, network.label(image).classes)
    files = [path.name for path in Path(str(folder).removeprefix("file:")).rglob("*.*")]
    assert "adapted.safetensors" in files and "input_example.json" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pth"))]


def test_a_reused_network_is_a_model_too(params: Params, root: Path) -> None:
    write_stages(adapt="", evaluate="")
    text = Path("dvc.yaml").read_text().replace("outs: [", f"outs: [{ADAPTED}, ", 1)
    Path("dvc.yaml").write_text(text)
    write_journal(Journal("adapt"), Path())
    ADAPTED.parent.mkdir()
    ADAPTED.write_bytes(b"weights")
    work("evaluate", params)
    outputs = runs(root, params)[0].outputs
    assert outputs and len(outputs.model_outputs) == 1


def test_timings_are_in_the_run_and_not_in_the_journal(params: Params, root: Path) -> None:
    """The journal is an output: it must not differ from run to run."""
    with stage_run("adapt", params) as run:
        run.metrics({"loss": 0.5}, 10)
        run.timings({"speed.seconds_a_step": 0.25, "speed.of_peak_percent": None}, 10)
        run.release(10)
        run.timings({"speed.seconds_a_step": 0.75}, 20)
    (found,) = runs(root, params)
    assert curve(root, found, "adapt/speed.seconds_a_step") == [(10, 0.25), (20, 0.75)]
    assert "adapt/speed.of_peak_percent" not in found.data.metrics
    assert "speed" not in (JOURNALS / "adapt.json").read_text()


@pytest.mark.parametrize("asked", [False, True])
def test_the_machine_is_watched_where_params_ask_for_it(
    params: Params,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: bool,
) -> None:
    """On a machine with a card the tool that reads its use may be missing."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setattr("pipeline.tracking.run.shutil.which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("pipeline.tracking.run.find_spec", lambda _: None)
    runtime = params.runtime.model_copy(update={"system_metrics": asked})
    params = params.model_copy(update={"runtime": runtime})
    for stage in ("pretrain", "adapt"):
        with stage_run(stage, params):
            time.sleep(0.4 if asked else 0.1)
    (run,) = runs(root, params)
    assert ("system/cpu_utilization_percentage" in run.data.metrics) is asked
    assert ("pip install nvidia-ml-py" in capsys.readouterr().err) is asked
    if asked:
        at = [step for step, _ in curve(root, run, "system/cpu_utilization_percentage")]
        assert at == list(range(len(at))), "the second stage goes on where the first ended"
        assert not any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())


def test_in_a_folder_of_a_larger_repository_that_folder_is_the_root(
    params: Params, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the database, the state and the parameters that a run is compared with."""
    inner = tmp_path / "research" / "streets"
    (inner / ".dvc").mkdir(parents=True)
    shutil.copy(database, inner)
    (inner / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(inner)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *names, *command], cwd=inner.parent, check=True)
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.delenv("DVC_EXP_BASELINE_REV")
    work("adapt", with_radius(params, 3))
    (run,) = runs(inner, params)
    assert "Parameters changed: `adapt.trucrf.radius=3`." in run.data.tags["mlflow.note.content"]
    deeper = inner / "docs"
    deeper.mkdir()
    monkeypatch.chdir(deeper)
    assert repository_root() == inner


@pytest.mark.parametrize(
    ("given", "folder", "there"),
    [
        ("sqlite:///own.db", "plain", False),
        ("sqlite:///below/own.db?timeout=9", "plain", True),
        (None, "100%20 #1? a", True),
        ("sqlite:///own.db", "100%20 #1? a", True),
    ],
)
def test_a_database_is_found_from_anywhere_whatever_it_is_called(
    params: Params,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    folder: str,
    there: bool,
) -> None:
    """A stage in a temporary folder writes into the main repository."""
    root = tmp_path / folder
    (root / "below").mkdir(parents=True)
    name = given.removeprefix("sqlite:///").partition("?")[0] if given else "mlflow.db"
    if there:
        shutil.copy(database, root / name)
    monkeypatch.setenv("DVC_ROOT", str(root))
    if given:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.chdir(temporary)
    Path("picture.png").write_bytes(b"picture")
    with stage_run("adapt", params) as stage:
        stage.artifact(Path("picture.png"))
    with closing(sqlite3.connect(root / name)) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    assert len(list((root / "mlruns").rglob("picture.png"))) == 1
    assert sorted(path.name for path in temporary.iterdir()) == ["metrics", "picture.png"]


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("runs of mine", "file://{root}/runs%20of%20mine"),
        ("file:./mlruns", "file://{root}/mlruns"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("http://user:word@host:5000", "http://user:word@host:5000"),
        ("sqlite:////data/own.db", "sqlite:////data/own.db"),
        ("postgresql://host/runs", "postgresql://host/runs"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_is_relative_to_the_main_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, used: str
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri() == used.format(root=tmp_path)


def test_what_mlflow_advises_is_told_whole(
    params: Params, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work("pretrain", params)
    experiment = client(root).get_experiment_by_name(params.runtime.experiment)
    assert experiment is not None
    client(root).delete_experiment(experiment.experiment_id)
    work("adapt", params)
    told = capsys.readouterr().err
    assert told.startswith("warning: MLflow (sqlite:///") and told.count("\n") == 1
    assert f"mlflow experiments restore --experiment-id {experiment.experiment_id}`" in told
    advice = "Detected out-of-date schema " + "x" * 200 + ", run 'mlflow db upgrade <uri>'"
    assert unreachable(OSError(f"{advice}\nmore")).endswith(f"OSError: {advice}")


def test_an_address_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000/a")
    told = unreachable(OSError("no answer from http://me:secret@host:5000, ask admin@host"))
    assert told == (
        "MLflow (http://host:5000/a): OSError: no answer from http://host:5000, ask admin@host"
    )
