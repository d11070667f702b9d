"""The benchmark of the stage `evaluate` makes all that the stage reads."""

from pathlib import Path

from benchmarks.evaluation import prepare
from pipeline.repository import stages
from ssda.datasets.index import read_index
from tests.conftest import ROOT, SMALL_NETWORK, make_params


def test_each_dep_of_the_stage_is_there(tmp_path: Path) -> None:
    prepare(tmp_path, make_params(SMALL_NETWORK), images=3)
    deps = [dep for dep in stages(ROOT)["evaluate"].deps if not dep.endswith(".py")]
    assert deps and not [dep for dep in deps if not (tmp_path / dep).exists()]
    assert len(read_index(tmp_path / "data/converted/target/report").records) == 1
