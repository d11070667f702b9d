"""Parameters that are wrong: nothing is lost, and the message says how they get right again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demo.scenes import write_cityscapes, write_gta
from pipeline.command import read_params
from pipeline.repository import stages
from tests.conftest import ROOT
from tests.pipeline.test_stages import write_params

HINT = (
    "; it stays in params.yaml until it is changed: `git checkout params.yaml` takes back all that "
    "was changed there since the commit"
)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A module's command."""
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True, capture_output=True)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed params.yaml of small scenes in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b")
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    write_params(tmp_path, {})
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path


def test_a_wrong_value_is_told_with_the_way_back(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("params.yaml")
    right = path.read_text()
    path.write_text(right.replace("radius: 5", "radius: -3"))
    wrong = r"^params\.yaml: adapt\.trucrf\.radius = -3: input should be [\w ]+ 1"
    with pytest.raises(ValueError, match=f"{wrong}{HINT}$"):
        read_params(path)
    with monkeypatch.context() as patch:  # in a folder of its own, as --temp works in
        patch.setenv("DVC_ROOT", str(workspace / "main"))
        with pytest.raises(ValueError, match=f"{wrong}$"):
            read_params(path)
    git("commit", "-q", "-a", "-m", "wrong")
    with pytest.raises(ValueError, match=f"{wrong}$"):
        read_params(path)
    git("checkout", "HEAD~1", "--", "params.yaml")
    assert read_params(path).adapt.trucrf.radius == 5


def test_dvc_keeps_all_outputs_where_parameters_are_refused(workspace: Path) -> None:
    """Real DVC on this project's stages, whose outputs are made up."""
    write_gta(Path("raw/game"), 2, size=(36, 68), processes=1)
    write_cityscapes(Path("raw/city"), {"train": 2, "val": 2}, size=(36, 68), processes=1)
    for name in ("ssda", "pipeline", "demo"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__", "dvc.*"))
    shutil.copy(ROOT / "dvc.yaml", ".")
    Path(".gitignore").write_text("/data\n/models\n/metrics\n/raw\n/.ssda\n/mlflow.db\n")
    run("dvc", "init", "-q")
    outs = [Path(out) for stage in stages(Path()).values() for out in stage.outs]
    files = [out if out.suffix else out / "content" for out in outs if "$" not in out.name]
    for file in [*files, Path("data/inventory/game.json")]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{file}")
    run("dvc", "commit", "-q", "-f")
    git("add", ".")
    git("commit", "-q", "-m", "second")
    done = run("dvc", "exp", "run", "-S", "model.encoder=resnet19", "-S", "adapt.trucrf.radius=3")
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: model.encoder = 'resnet19': not an encoder")
    assert line.endswith(HINT)
    assert [file.read_text() for file in files] == [f"{file}" for file in files]
