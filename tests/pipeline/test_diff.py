import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.diff import MARKER, difference


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with a metric and a parameter, committed on `main`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_AUTHOR_NAME", "a")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "a@b")
    monkeypatch.setenv("GIT_COMMITTER_NAME", "a")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "a@b")
    run("git", "init", "-q", "-b", "main")
    run(sys.executable, "-m", "dvc", "init", "-q")
    Path("params.yaml").write_text("adapt: {radius: 5}\n")
    Path("scores.json").write_text('{"adapted": {"miou": 50.0}}\n')
    Path("dvc.yaml").write_text("params: [params.yaml]\nmetrics: [scores.json]\n")
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", "first")
    return tmp_path


def test_changes_of_metrics_and_params_are_in_the_table(repository: Path) -> None:
    (repository / "params.yaml").write_text("adapt: {radius: 3}\n")
    (repository / "scores.json").write_text('{"adapted": {"miou": 52.5}}\n')
    text = difference("main")
    assert text.startswith(MARKER)
    assert "| scores.json | adapted.miou |" in text and "2.5" in text
    assert re.search(r"\| adapt\.radius \| 5 +\| 3 +\|", text)


def test_without_a_change_it_says_so(repository: Path) -> None:
    assert difference("main").count("No change.") == 2


def test_an_unknown_base_is_one_line(repository: Path) -> None:
    with pytest.raises(ValueError, match="no-such-branch") as caught:
        difference("no-such-branch")
    assert "\n" not in str(caught.value)
