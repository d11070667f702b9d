import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.diff import ALLOWED_FALL, MARKER, SCORES, compare, difference, fallen, stale

PIPELINE = """
stages:
  learn:
    cmd: cat code.py params.yaml > model.bin
    deps: [code.py]
    params: [adapt]
    outs: [model.bin]
  evaluate:
    cmd: cp scores.json metrics/evaluate.json; cp headline.json metrics
    deps: [model.bin, scores.json, headline.json]
    metrics: [{metrics/headline.json: {cache: false}}]
    plots: [{metrics/evaluate.json: {cache: false}}]
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def commit() -> None:
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", "some")


def scores(miou: float | None) -> str:
    return json.dumps({"adapted": {"miou": miou, "iou": {"road": miou}}})


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository on `main` whose stages DVC ran, and whose data are then removed."""
    folder = tmp_path_factory.mktemp("reproduced")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{name}_NAME", "a")
            patch.setenv(f"GIT_{name}_EMAIL", "a@b")
        run("git", "init", "-q", "-b", "main")
        run(sys.executable, "-m", "dvc", "init", "-q")
        Path("dvc.yaml").write_text(PIPELINE)
        Path("params.yaml").write_text("adapt: {radius: 5}\n")
        Path("code.py").write_text("one\n")
        Path("scores.json").write_text(scores(50.0))
        Path("headline.json").write_text('{"mIoU": 50.0}')
        Path(".gitignore").write_text("model.bin\n")
        Path("metrics").mkdir()
        run(sys.executable, "-m", "dvc", "repro", "-q")
        commit()
    Path(folder / "model.bin").unlink()
    shutil.rmtree(folder / ".dvc/cache")
    return folder


@pytest.fixture
def repository(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository, the current folder."""
    copy = tmp_path / "copy"
    shutil.copytree(reproduced, copy)
    monkeypatch.chdir(copy)
    return copy


def test_changes_of_metrics_and_params_are_in_the_tables(repository: Path) -> None:
    Path("params.yaml").write_text("adapt: {radius: 3}\n")
    Path(SCORES).write_text(scores(52.5))
    Path("metrics/headline.json").write_text('{"mIoU": 52.5}')
    text, single = difference("main").split("<details>")
    assert re.search(r"mIoU +\| 50\.0 +\| 52\.5 +\| 2\.5", text)
    assert "road" not in text and "| road | 50.0 | 52.5 |" in single
    assert re.search(r"\| adapt\.radius \| 5 +\| 3 +\|", single)


def test_without_data_and_change_there_is_nothing_against_it(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare("main")
    text = capsys.readouterr().out
    assert text.startswith(MARKER) and text.count("No change.") == 2
    assert "Nothing against it." in text


def test_an_unknown_base_is_one_line(repository: Path) -> None:
    with pytest.raises(ValueError, match="no-such-branch") as caught:
        compare("no-such-branch")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("miou", "refused"), [(51, False), (50 - ALLOWED_FALL, False), (47.9, True), (None, True)]
)
def test_a_fall_of_more_than_chance_is_refused(
    repository: Path, miou: float | None, refused: bool
) -> None:
    Path(SCORES).write_text(scores(miou))
    assert [SCORES in reason for reason in fallen("main")] == [True] * refused


def subset_scores(miou: float, **subsets: float) -> str:
    return json.dumps({"adapted": {"miou": miou} | subsets})


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (subset_scores(40, miou_16=50, miou_13=40), None),
        (subset_scores(50, miou_16=40, miou_13=50), "adapted.miou_16 was 50 and is 40"),
        (subset_scores(50, miou_13=40, miou_16=50), "adapted.miou_13 was 50 and is 40"),
        (subset_scores(40, miou_few=50), "adapted.miou was 50 and is 40"),
        (subset_scores(40), "adapted.miou was 50 and is 40"),
    ],
)
def test_the_first_subset_of_classes_decides(
    repository: Path, after: str, reason: str | None
) -> None:
    Path(SCORES).write_text(subset_scores(50, miou_16=50, miou_13=50))
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "subsets")
    Path(SCORES).write_text(after)
    assert [reason in found for found in fallen("HEAD") if reason] == [True] * (reason is not None)
    assert bool(fallen("HEAD")) == (reason is not None)


def test_a_base_without_scores_allows_all(repository: Path) -> None:
    run("git", "rm", "-q", "--cached", SCORES)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "none")
    assert fallen("main") == []


@pytest.mark.parametrize(
    ("file", "before", "after", "reason"),
    [
        ("code.py", "one", "two", "learn (code.py modified)"),
        ("params.yaml", "5", "3", "learn (params.yaml: adapt modified)"),
        ("dvc.yaml", "cat code", "cat -u code", "learn (changed command)"),
        (
            "dvc.yaml",
            "deps: [code.py]",
            "deps: [code.py, scores.json]",
            "learn (scores.json modified)",
        ),
        (SCORES, "50", "60", f"evaluate ({SCORES} modified)"),
        ("code.py", "one\n", "", "learn (code.py deleted)"),
        (SCORES, scores(50.0), "", f"evaluate ({SCORES} deleted)"),
    ],
)
def test_what_dvc_lock_does_not_have_is_told_without_data(
    repository: Path, file: str, before: str, after: str, reason: str
) -> None:
    text = Path(file).read_text()
    assert before in text
    if changed := text.replace(before, after):
        Path(file).write_text(changed)
    else:
        Path(file).unlink()
    assert stale("main") == [f"dvc.lock is stale, `dvc repro` first: {reason}"]


def test_a_stage_that_did_not_read_what_was_last_written_is_told(repository: Path) -> None:
    text = Path("dvc.lock").read_text()
    first, second = re.findall(r"path: model\.bin\n +hash: md5\n +md5: (\w+)", text)
    assert first == second
    Path("dvc.lock").write_text(text.replace(first, "a" * 32, 1))
    (reason,) = stale("main")
    assert reason.endswith(": evaluate (model.bin written anew)")


def test_the_command_fails_after_it_has_printed_the_tables(repository: Path) -> None:
    Path("params.yaml").write_text("adapt: {radius: 3}\n")
    Path(SCORES).write_text(scores(40.0))
    command = [sys.executable, "-m", "pipeline.diff", "main"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stdout.count("Not to be merged") == 2 and "adapt.radius" in done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
