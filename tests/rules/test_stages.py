"""Every stage's deps name the source files it imports, and its params the sections it reads."""

import ast
import json
import re
from pathlib import Path

from pipeline.dependencies import import_closure, sections_read, updated
from ssda.params import Params, load_params
from ssda.sections import read_yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    name: stage.get("do", stage)  # a stage a source
    for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()
}


def test_deps_and_params_are_what_the_command_writes() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    params = load_params(ROOT / "params.yaml")
    assert updated(text, params) == text, "run python -m pipeline.dependencies"
    listed = text.replace("        - ssda/files.py\n", "")
    assert updated(listed, params) == text != listed


def test_the_import_closure_has_what_functions_import_and_not_what_changes_no_result() -> None:
    adapt = import_closure(ROOT / "pipeline/adapt.py")
    assert {"pipeline/adapt.py", "ssda/engine/adapting.py", "ssda/method/trucrf_cuda.py"} <= adapt
    assert (
        not {"pipeline/training/loop.py", "pipeline/evaluate.py", "ssda/datasets/layouts.py"}
        & adapt
    )
    assert sections_read({"pipeline/adapt.py"}) == {"adapt", "compute", "images", "model"}


def test_scoring_depends_on_no_training() -> None:
    assert not {"ssda/engine/adapting.py", "ssda/engine/training.py"} & set(
        STAGES["evaluate"]["deps"]
    )


def test_demo_stage_names_its_sources() -> None:
    deps = set(read_yaml(ROOT / "demo/dvc.yaml")["stages"]["scenes"]["deps"])
    assert import_closure(ROOT / "demo/scenes.py") <= deps


def test_no_stage_keeps_outputs_between_runs_or_names_gpus() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert "persist" not in text
    assert "nproc" not in text.lower()


def test_packages_run_no_code_when_imported() -> None:
    """They are no deps. The library's own has functions, of which no stage calls one."""
    for folder in ("ssda", "pipeline", "demo"):
        for path in (ROOT / folder).rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            assert isinstance(body[0], ast.Expr), path
            assert len(body) == 1 or path == ROOT / "ssda/__init__.py", path
    for path in {dep for stage in STAGES.values() for dep in stage["deps"] if dep.endswith(".py")}:
        assert not re.search(
            r"^ *import ssda$|^ *from ssda import", (ROOT / path).read_text(), re.M
        )


def test_a_stage_s_section_reruns_no_earlier_stage() -> None:
    order = ["pretrain", "adapt", "evaluate"]
    for stage in ("convert", *order):
        later = order[order.index(stage) + 1 :] if stage in order else order
        assert not set(later) & set(STAGES[stage]["params"]), stage


def test_no_parameter_has_a_name_that_the_run_cache_overlooks() -> None:
    """DVC looks a run up by its parameters, but for those that are called like a file's facts."""
    names = re.findall(r'"(size|nfiles)":', json.dumps(Params.model_json_schema()["$defs"]))
    assert names == []


def test_only_metrics_are_kept_out_of_the_cache() -> None:
    """DVC's run cache skips a stage with any other output that is not cached."""
    for stage in STAGES.values():
        for out in stage.get("outs", []):
            assert isinstance(out, str), out
