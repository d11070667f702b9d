import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.checks import finished
from ssda.params import Params, load_params
from tests.conftest import ROOT

STAGE: dict[str, Any] = {
    "cmd": f"{sys.executable} stage.py",
    "deps": ["input.txt"],
    "params": ["adapt", "images"],
    "outs": ["network.bin", "curves"],
    "metrics": [{"score.json": {"cache": False}}],
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params of a folder in which the stage adapt reads one file and leaves three things."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finished, "CODE", tmp_path)
    with Path("dvc.yaml").open("w") as file:
        YAML().dump({"stages": {"adapt": STAGE}}, file)
    for name in ("DVC_ROOT", "DVC_STAGE", "RANK", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    Path("input.txt").write_text("one")
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    Path("stage.py").write_text(
        "from pathlib import Path\n"
        "text = Path('input.txt').read_text()\n"
        "Path('curves').mkdir(exist_ok=True)\n"
        "for name in ('network.bin', 'curves/loss.csv', 'score.json'):\n"
        "    Path(name).write_text(text)\n"
    )
    return load_params()


def runs(params: Params, *, force: bool = False) -> bool:
    """Whether the stage runs when a person starts it."""
    calls: list[Params] = []

    def stage(params: Params) -> None:
        calls.append(params)
        subprocess.run([sys.executable, "stage.py"], check=True)

    finished.unless_finished("adapt", params, stage, force=force)
    return len(calls) == 1


def test_by_hand_a_stage_runs_once(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs(params)
    assert not runs(params)
    assert capsys.readouterr().out == "adapt: up to date; --force runs it anyway\n"
    assert runs(params, force=True)
    assert not runs(params)


@pytest.mark.parametrize("name", ["network.bin", "curves/loss.csv", "score.json", "input.txt"])
def test_it_runs_again_where_a_file_is_another_or_missing(params: Params, name: str) -> None:
    assert runs(params)
    Path(name).write_text("two")
    assert runs(params)
    if name != "input.txt":
        Path(name).unlink()
        assert runs(params)
    assert not runs(params)


def test_it_runs_again_with_other_parameters_of_its_own(params: Params) -> None:
    assert runs(params)
    adapt = params.adapt.model_copy(update={"iterations": 3})
    assert runs(params.model_copy(update={"adapt": adapt}))
    assert runs(params)
    runtime = params.runtime.model_copy(update={"log_every": 3})
    evaluate = params.evaluate.model_copy(update={"flip": True})
    assert not runs(params.model_copy(update={"runtime": runtime, "evaluate": evaluate}))


@pytest.mark.parametrize("name", ["DVC_STAGE", "RANK", "NNODES"])
def test_what_dvc_torchrun_or_another_machine_works_with_runs(
    params: Params, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert runs(params)
    monkeypatch.setenv(name, "0")
    assert runs(params)


def test_what_dvc_ran_is_up_to_date_by_hand(params: Params) -> None:
    def dvc(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)

    dvc("init", "-q", "--no-scm")
    dvc("repro", "-q")
    assert not runs(params)
    adapt = params.adapt.model_copy(update={"iterations": 3})
    assert runs(params.model_copy(update={"adapt": adapt}))
    Path("input.txt").write_text("two")
    assert runs(params)
    assert not runs(params)
