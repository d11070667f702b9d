"""The page is made from what git and DVC track, holds all it shows, and says what differs."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import page
from pipeline.drawing.figures import bars, save
from pipeline.drawing.report import WORKSPACE
from pipeline.drawing.tables import write_table
from ssda.datasets.image_files import write_png
from tests.conftest import ROOT

# DVC's own use of its libraries.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VOID = {"meta", "img", "input", "!doctype"}


class Checked(HTMLParser):
    """Texts and images of a page; every tag must be closed, and nothing may be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert name not in ("href", "srcset") and tag not in ("script", "link")
            if name == "src":
                assert value is not None and value.startswith("data:image/")
                self.images.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def scores(miou: float) -> dict[str, object]:
    entry = {"miou": miou, "pixel_accuracy": 70.0, "iou": {"road": miou, "car": None}}
    return {"images": 2, "source_only": None, "reestimated": None, "student": entry} | {
        "adapted": entry
    }


def write_outputs(miou: float, radius: int) -> None:
    text = (ROOT / "params.yaml").read_text().replace("radius: 5", f"radius: {radius}")
    Path("params.yaml").write_text(text.replace("labels: cityscapes", "labels: <b>.yaml", 1))
    Path("metrics/evaluate.json").write_text(json.dumps(scores(miou)))
    rows = [{"step": step, "validation_miou": miou / step} for step in (1, 2)]
    write_table(Path("metrics/adapt/validation.csv"), rows)
    save(bars({"adapted": {"road": miou}}), Path("metrics/adapt/pictures/000001.png"))
    save(bars({"adapted": {"road": miou}}), Path("metrics/pictures.png"))
    for street in ("town", f"street {radius}"):
        for number, kind in enumerate(("image", "truth", "adapted")):
            shade = round(miou) if kind == "adapted" else number
            write_png(Path(f"metrics/streets/{street}/{kind}.png"), np.full((2, 4), shade))


def run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The branches a and b hold results; metrics/adapt is in DVC's cache alone."""
    folder = tmp_path_factory.mktemp("repository")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    for name in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{name}_NAME", "someone")
        patch.setenv(f"GIT_{name}_EMAIL", "someone@example.org")
    patch.delenv("DVC_ROOT", raising=False)
    run("git", "init", "-q", "-b", "a")
    run(sys.executable, "-m", "dvc", "init", "-q")
    shutil.copytree(ROOT / "presets", "presets")
    Path("metrics").mkdir()
    sets = {"sources": {"game": {"images": 3}}, "target": {"train": {"images": 4}}}
    Path("metrics/convert.json").write_text(json.dumps(sets))
    for name, miou, radius in (("a", 50.25, 5), ("b", 61.0, 3)):
        shutil.rmtree("metrics/streets", ignore_errors=True)
        write_outputs(miou, radius)
        run(sys.executable, "-m", "dvc", "add", "-q", "metrics/adapt")
        run("git", "checkout", "-q", "-B", name)
        run("git", "add", "-A")
        run("git", "commit", "-q", "-m", f"results <{name}>")
    shutil.rmtree("metrics/adapt")
    yield folder
    patch.undo()


def written(names: list[str]) -> Checked:
    page.write_page(names, Path("report.html"))
    return Checked(Path("report.html").read_text())


def test_a_page_of_one_revision_holds_tables_curves_and_pictures(repository: Path) -> None:
    found = written(["a"])
    text = " ".join(found.texts)
    assert found.texts.count("mIoU: a 50.2") == 2  # title and heading
    assert "results <a>" in text and "git checkout a" in text
    assert "50.2" in text and "sources: game" in text
    assert "labels" in text and "<b>.yaml" in text  # the one parameter that differs
    assert "trucrf.radius" not in text.split("All parameters")[0]
    kinds = [image.split(";")[0] for image in found.images]
    # pictures.png, a picture of training; bars, the validation curve
    assert kinds.count("data:image/png") == 2 and kinds.count("data:image/svg+xml") == 2
    assert "metrics/confusion.png is not here" in text


def test_a_clone_into_which_nothing_was_pulled_has_a_page(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("git", "clone", "-q", "-b", "a", str(repository), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    text = " ".join(written([WORKSPACE]).texts)
    assert "50.2" in text and "None here." in text
    assert "No pictures here; runtime.picture_every asks for them, dvc pull" in text


def test_the_workspace_is_read_as_it_lies_there(repository: Path) -> None:
    content = Path("metrics/evaluate.json").read_text()
    Path("metrics/evaluate.json").write_text(json.dumps(scores(12.5)))
    text = " ".join(written([WORKSPACE]).texts)
    Path("metrics/evaluate.json").write_text(content)
    assert "12.5" in text and "with changes" in text


def test_a_comparison_shows_what_differs_side_by_side(repository: Path) -> None:
    found = written(["a", "b", "a"])
    text = " ".join(found.texts)
    assert "50.2" in text and "61.0" in text
    assert found.texts.count("mIoU: b 61.0, a 50.2") == 2
    assert "adapt.trucrf.radius" in text and "labels" not in text
    kinds = [image.split(";")[0] for image in found.images]
    assert kinds.count("data:image/svg+xml") == 2  # one curve and the bars for both
    shades = [shade(image) for image in found.images if "image/png" in image]
    # a row: image, truth, adapted of a, adapted of b; two streets are of one experiment alone
    assert shades == [0, 1, 61, 0, 1, 50, 0, 1, 50, 61]
    assert found.texts.count("-") >= 2


def shade(address: str) -> int:
    content = np.frombuffer(base64.b64decode(address.partition(",")[2]), np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return int(image[0, 0])


def test_streets_that_are_not_here_are_told(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("git", "clone", "-q", "-b", "a", str(repository), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    run("git", "rm", "-q", "-r", "metrics/streets")
    run("git", "commit", "-q", "-m", "none")
    assert "metrics/streets is not here" in " ".join(written([WORKSPACE, "a"]).texts)


def test_commands_of_an_experiment_bring_it_back(repository: Path) -> None:
    ref = "refs/exps/00/0000/<try>"
    run("git", "update-ref", ref, "b")
    try:
        text = " ".join(written(["<try>", "a"]).texts)
    finally:
        run("git", "update-ref", "-d", ref)
    assert "dvc exp apply '<try>'" in text
    assert re.search(r"git checkout \w{10}\ndvc exp run -S adapt\.trucrf\.radius=3\n?", text)


def test_a_wrong_name_is_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["page", "none"])
    with pytest.raises(SystemExit, match=r"^error: none: .*dvc exp list") as end:
        page.main()
    assert "\n" not in str(end.value.code) and capfd.readouterr() == ("", "")
