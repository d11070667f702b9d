"""Parameters at random, a key at a time: refused in one line before the first stage, or run."""

import copy
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.scenes import write_cityscapes, write_gta
from pipeline import inventory
from pipeline.checks.preflight import preflight
from pipeline.parameters import ANY, parameters
from ssda.params import Params
from ssda.sections import read_yaml, set_values, validate
from tests.conftest import ROOT
from tests.pipeline.test_stages import STAGES, TINY

VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "a\0b", "a\nb", "x" * 10**5, "../x", "own.yaml", "mit_b0"),
    *(-(2**63), -1, 0, 1, 2, 3, 7, 10**3, 10**5, 2**31, 2**63, 10**400),
    *(-1.0, 5e-324, 1e-8, 0.01, 0.5, 1.0, 1.5, 100.0, 1e308, float("nan"), float("inf")),
    *([], [1], [1, 1], [0.1, 0.2], [8, 8], [64, 32], [10**5, 10**5], [2**63, 1], [0, 0], [[]]),
    *({}, {"x": 1}, {"extent": [32, 32], "step": [16, 16]}, ["16"], b"x", "hf-hub:", "ftp:x"),
)
LONGEST_RUN = 10
"""Steps; more end as well, but not soon."""
RUNS = 60
WINDOWS = {"evaluate.windows": {"extent": [64, 32], "step": [64, 32]}}
Try = tuple[str, Any]


@cache
def tiny() -> dict[str, Any]:
    return set_values(read_yaml(ROOT / "params.yaml"), TINY | WINDOWS)


def tries(count: int) -> list[Try]:
    """Keys and values, drawn without putting back, sections and single keys alike."""
    keys = [key.replace(ANY, "game") for key in parameters()]
    every = [(key, value) for key in keys for value in VALUES]
    chosen = np.random.default_rng(0).permutation(len(every))[:count]
    return [every[i] for i in chosen]


def accepted(key: str, value: Any) -> Params | None:
    """The parameters with one value, where they are taken; fails where no line says why not."""
    try:
        values = set_values(copy.deepcopy(tiny()), {key: value})
        return validate(Params, values, "params.yaml")
    except ValueError as error:
        line = str(error)
        assert line.startswith("params.yaml: ") and "\n" not in line and len(line) < 700, line
        return None


def test_a_value_is_refused_in_one_line_or_taken() -> None:
    taken = [accepted(*each) is not None for each in tries(600)]
    assert 20 < sum(taken) < 580


@pytest.mark.soak
def test_every_value_is_refused_in_one_line_or_taken() -> None:
    assert len([accepted(*each) for each in tries(10**6)]) > 4000


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_what_is_taken_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    write_gta(raw / "game", 4, size=(36, 68), processes=1)
    write_cityscapes(raw / "city", {"train": 4, "val": 2}, size=(32, 64), processes=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    problems: list[str] = []
    ran = 0
    for key, value in tries(10**6):
        params = accepted(key, value)
        if params is None or max(params.pretrain.iterations, params.adapt.iterations) > LONGEST_RUN:
            continue
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "raw").parent.mkdir()
        (folder / "raw").symlink_to(raw)
        monkeypatch.chdir(folder)
        try:
            preflight(params)
            inventory.inventory(params, "game")
        except (ValueError, OSError) as error:
            assert "\n" not in str(error), (key, value, error)
            continue
        try:
            for module, name in STAGES:
                getattr(module, name)(params)
        except Exception as error:
            problems.append(f"{key} = {value!r:.80}: {type(error).__name__} {error!s:.300}")
        ran += 1
        if ran == RUNS:
            break
    assert not problems, "\n".join(problems)
    assert ran == RUNS
