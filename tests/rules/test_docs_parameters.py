"""docs/parameters.md and the comments of params.yaml are what the typed model says."""

from pathlib import Path

import pytest

from pipeline import parameters
from tests.conftest import ROOT

RIGHT = "python -m pipeline.parameters puts it right"


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_every_parameter_is_explained() -> None:
    known = parameters.parameters()
    assert [key for key, each in known.items() if not each.text] == ["sources.NAME"]


def test_the_page_is_what_the_command_makes() -> None:
    assert parameters.PAGE.read_text(encoding="utf-8") == parameters.page(), RIGHT


def test_comments_are_what_the_command_makes() -> None:
    for path in parameters.commented_files():
        text = path.read_text(encoding="utf-8")
        assert parameters.commented(text) == text, f"{path}: {RIGHT}"


def test_the_command_mends_comments_and_leaves_values(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    spoilt = text.replace("# >= 2; Monte-Carlo", "# Monte-Karlo").replace("# seeds every", "# ")
    spoilt = spoilt.replace("  radius: 5 ", "  radius: 777 ")
    mended = parameters.commented(spoilt)
    assert mended == text.replace("  radius: 5 ", "  radius: 777 ").replace("777   ", "777 ")


def test_the_page_says_what_is_allowed_and_what_reruns() -> None:
    lines = parameters.page().splitlines()
    assert any(
        line.startswith("| `radius` | `5` | `5` | whole number [1, 64] | Half width")
        for line in lines
    )
    assert any("[0, 1) |" in line for line in lines if line.startswith("| `dropout`"))
    start = lines.index("## evaluate.windows")
    assert "from `evaluate` on" in lines[start + 2]
