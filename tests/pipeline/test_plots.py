"""The page that `dvc plots show` makes of the plots in dvc.yaml, as a browser reads it."""

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from pipeline.drawing.figures import bars, save
from pipeline.drawing.tables import write_table
from ssda.files import write_json
from ssda.sections import read_yaml
from tests.conftest import ROOT

LOSSES = ("loss_source", "loss_mix", "loss_seed", "loss_uncertainty", "loss_trucrf")
SHARES = ("certain_share", "seeds", "uncertainty")
SCORES = ("validation_miou", "validation_miou_student")
NETWORKS = ("source_only", "reestimated", "student", "adapted")
RUN = """
const drawn = []
function vegaEmbed(place, spec) { drawn.push({place, spec}) }
for (const text of JSON.parse(require("fs").readFileSync(0))) {
  new Function("vegaEmbed", text)(vegaEmbed)
}
console.log(JSON.stringify(drawn))
"""
"""Runs the page's scripts, with a library that only notes what it is asked to draw."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plots")
    for name in ("dvc.yaml", "params.yaml", ".dvc/config", ".dvc/plots", "demo/params.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    metrics = folder / "metrics"
    rows = [{"step": i} | dict.fromkeys((*LOSSES, *SHARES), i / 9) for i in (1, 2, 3)]
    write_table(metrics / "adapt/losses.csv", rows)
    scores = [{"step": i} | dict.fromkeys(SCORES, 10.0 * i) for i in (1, 2)]
    for stage in ("pretrain", "adapt"):
        write_table(metrics / stage / "validation.csv", scores)
    write_table(metrics / "iou.csv", [{"class": "road"} | dict.fromkeys(NETWORKS, 50.0)])
    shares = {"network": "adapted", "truth": "road", "prediction": "road", "share": 90.0}
    write_table(metrics / "confusion.csv", [shares])
    write_json(metrics / "evaluate.json", {"networks": [{"network": "adapted", "mIoU": 50.0}]})
    for name in ("pictures.png", "adapt/pictures/000001.png"):
        save(bars({"adapted": {"road": 50.0}}), metrics / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    command = [sys.executable, "-m", "dvc", "plots", "show"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "dvc_plots/index.html").read_text()


def titles() -> set[str]:
    """Of the plots in dvc.yaml that are no pictures."""
    content = read_yaml(ROOT / "dvc.yaml")
    named = {title for plot in content["plots"] if isinstance(plot, dict) for title in plot}
    outs = [out for stage in content["stages"].values() for out in stage.get("plots", [])]
    return named | {settings["title"] for out in outs for settings in out.values()}


def test_each_plot_has_a_place_that_can_be_found(page: str) -> None:
    """A name with a quote ends the script's text, and is no selector."""
    places = re.findall(r"vegaEmbed\((.*), spec\);", page)
    assert len(places) == len(titles())
    assert [place for place in places if not re.fullmatch(r"'#[A-Za-z][\w-]*'", place)] == []


def test_a_browser_s_engine_draws_each_plot(page: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs JavaScript")
    scripts = re.findall(r"<script type = .*?>(.*?)</script>", page, re.S)
    command = [node, "-e", RUN]
    done = subprocess.run(command, input=json.dumps(scripts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = [entry["spec"] for entry in json.loads(done.stdout)]
    found: dict[str, Any] = {}
    for spec in drawn:
        assert "DVC_METRIC" not in json.dumps(spec)
        title = spec["title"]
        found[title if isinstance(title, str) else title["text"]] = spec
    assert found.keys() == titles()
    losses = found["Losses while adapting"]
    colour = losses["encoding"]["color"]["field"]
    assert {point[colour] for point in losses["data"]["values"]} == {*LOSSES}


def test_pictures_are_no_wider_than_the_page(page: str) -> None:
    assert len(re.findall("<img src=", page)) == 2
    assert re.search(r"img \{ max-width: \d+vw; \}", page)
