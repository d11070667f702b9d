"""Figures in documents are those of the results, as the two commands write them."""

from pathlib import Path

import pytest

from benchmarks import documents as benchmarks
from pipeline.drawing.tables import MARKED, documents, fill_documents, filled
from research import documents as research
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("writer", ["benchmarks", "research"])
def test_figures_are_those_of_the_results(writer: str) -> None:
    figures = {"benchmarks": benchmarks, "research": research}[writer].figures()
    marks = 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        marks += text.count(f"<!-- {writer}: ")
        right = f"{path}: python -m {writer}.documents puts it right"
        assert filled(text, writer, figures) == text, right
    assert marks > 5


def test_every_mark_has_a_writer_and_an_end() -> None:
    for path in documents():
        text = path.read_text(encoding="utf-8")
        marks = MARKED.findall(text)
        assert {writer for _, writer, *_ in marks} <= {"benchmarks", "research"}, path
        assert len(marks) == text.count("<!-- end -->"), path


def test_a_stale_figure_is_written_anew_and_the_rest_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    rest = "<!-- research: b -->kept<!-- end -->\n"
    Path("README.md").write_text(f"It is <!-- benchmarks: a -->1<!-- end --> s.\n{rest}")
    Path("docs/page.md").write_text("<!-- benchmarks: t -->\n| old |\n<!-- end -->\n")
    fill_documents("benchmarks", {"a": "2", "t": "| x |\n| y |"})
    assert Path("README.md").read_text() == f"It is <!-- benchmarks: a -->2<!-- end --> s.\n{rest}"
    page = "<!-- benchmarks: t -->\n| x |\n| y |\n<!-- end -->\n"
    assert Path("docs/page.md").read_text() == page
    with pytest.raises(ValueError, match=r"<!-- benchmarks: a -->: benchmarks has no such figure"):
        fill_documents("benchmarks", {"t": "1"})
