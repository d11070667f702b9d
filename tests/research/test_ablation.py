import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.overlays import load_preset
from research import ablation, baselines, targets
from research.ablation import (
    Result,
    Score,
    add_result,
    job,
    pretrained_path,
    read_results,
    write_results,
)
from research.controls import balanced, most_certain, same_share
from research.summary import class_table, correlations, estimate, gap_closure, rows
from research.targets import CITIES
from research.variants import BASELINES, EVERY, SETTINGS, VARIANTS
from ssda.labels import CITYSCAPES
from ssda.method import guidance
from ssda.method.subdomains import keep_ratios, select_seeds
from ssda.params import load_params
from tests.conftest import ROOT

FIFTY = Score(50.0, (50.0, None))
RUN = Result("default", "city", "full", 0, "k", "c", 1.0, FIFTY, Score(40.0, (40.0,)), {})


def run(variant: str, state: int, test: float, **indicators: float) -> Result:
    score = Score(test + 1.0, (test,))
    return replace(
        RUN,
        variant=variant,
        random_state=state,
        validation=score,
        test=Score(test, (test,)),
        indicators=indicators,
    )


@pytest.fixture(autouse=True)
def parameters_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not twice for each job."""
    monkeypatch.setattr(targets, "load_params", cache(load_params))


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_variant_is_valid_and_differs_from_all_others(setting: str) -> None:
    names = [name for name in VARIANTS if not name.startswith("plain")]  # as all are on the city
    keys = {name: job(setting, "city", name, 0, "data").key for name in names}
    assert len(set(keys.values())) == len(keys)
    assert job(setting, "city", "full", 1, "data").key != keys["full"]
    assert job(setting, "city", "full", 0, "other data").key != keys["full"]


def test_methods_beside_ours_are_their_overlays_for_as_many_steps() -> None:
    jobs = {name: job("default", "city", name, 0, "data") for name in BASELINES}
    assert len({each.key for each in jobs.values()}) == len(jobs)
    for name, each in jobs.items():
        adapt = each.params.adapt
        assert each.pretraining.pretrain.iterations + adapt.iterations == 750
        if overlay := BASELINES[name].overlay:
            preset = load_preset("demo", overlay)
            assert (adapt, each.params.model) == (preset.adapt, preset.model)
            assert each.pretraining.model == preset.model
            assert each.params.sampling == preset.sampling
    overlays = {f"method/{path.stem}" for path in (ROOT / "presets/method").glob("*.yaml")}
    others = (
        *("paper_ratios", "corrected_from_start", "two_resolutions"),
        *("vfm_uda", "vfm_uda_seeds"),
    )
    assert overlays - {*BASELINES} == {f"method/{name}" for name in others}


def test_variants_share_the_pretraining_of_a_state() -> None:
    """Those whose source images are augmented have another one than the others."""
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for name in VARIANTS:
        if name != "short_pretraining":
            pretraining = job("short", "city", name, 3, "data").pretraining.model_dump_json()
            found[name.startswith("augmented")].add(pretraining)
    assert len(found[False]) == len(found[True]) == 1 and found[False] != found[True]


def test_cities_of_one_game_share_the_pretraining_of_a_state() -> None:
    paths = {
        pretrained_path(job("short", target, "full", 3, target).pretraining, "game")
        for target in CITIES
    }
    assert len(paths) == 1


def test_a_run_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert read_results(path) == []
    other = replace(RUN, random_state=1, validation=None)
    write_results(path, [RUN, other, replace(RUN, key="new")])
    assert read_results(path) == [replace(RUN, key="new"), other]


def test_processes_that_add_runs_at_once_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research.ablation.FOLDER", tmp_path / "locks")
    path = tmp_path / "runs.jsonl"
    runs = [replace(RUN, random_state=state) for state in range(16)]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(add_result, [(path, result) for result in runs], chunksize=1)
    assert read_results(path) == runs


def test_differences_are_taken_state_by_state() -> None:
    results = [run("full", 0, 50.0), run("full", 1, 60.0)]
    results += [run("mixing", 0, 48.0), run("mixing", 1, 59.0), run("mixing", 2, 10.0)]
    full, mixing = rows(results, "full")
    assert full.test_difference is None
    assert mixing.test == estimate([48.0, 59.0, 10.0])
    difference = mixing.validation_difference
    assert difference is not None
    assert difference.mean == pytest.approx(-1.5)
    assert difference.deviation == pytest.approx(0.5**0.5)
    assert difference.interval == pytest.approx(12.71 * 0.5)


def test_gap_closure_takes_the_states_that_have_all_three() -> None:
    results = [run("full", 0, 50.0), run("source_longer", 0, 20.0), run("oracle", 0, 60.0)]
    results += [run("full", 1, 99.0)]
    assert gap_closure(results, "full") == estimate([0.75])
    assert gap_closure(results, "mixing") is None


def test_classes_are_compared_over_the_states_that_have_all_variants() -> None:
    road = [("full", 0, 50.0), ("full", 1, 60.0), ("mixing", 0, 40.0), ("mixing", 1, 41.0)]
    results = [run(*values) for values in [*road, ("full", 2, 99.0)]]
    results = [replace(r, test=Score(0.0, (r.test.miou, *[None] * 18))) for r in results]
    table = class_table(results, ("full", "mixing"), CITYSCAPES.names)
    assert table is not None and "| road | 55.0 ± 7.1 | 40.5 ± 0.7 |" in table
    assert "| bicycle | - | - |" in table
    assert class_table(results, ("full", "oracle"), CITYSCAPES.names) is None


def test_an_indicator_that_ranks_as_the_score_does_comes_first() -> None:
    names = ("full", "mixing", "mixing_pixel", "without_seed")
    results = [
        run(name, state, 40.0 + i, good=float(i), bad=float(i % 2))
        for state in (0, 1)
        for i, name in enumerate(names)
    ]
    table = {row.indicator: row for row in correlations(results)}
    assert table["good"].within_states == pytest.approx(1.0)
    assert abs(table["bad"].within_states) < 1.0


def test_controls_choose_as_many_seeds_in_another_way() -> None:
    generator = torch.Generator().manual_seed(0)
    # The class is the frequent one where the network is sure.
    uncertainty = torch.rand(2, 40, 50, generator=generator)
    labels = (uncertainty > 0.7).long()
    labels[:, :2] = 255
    frequencies = torch.tensor([0.7, 0.3])
    ratios = keep_ratios(frequencies, beta=0.2)
    seeds = select_seeds(labels, uncertainty, 1 - uncertainty, ratios)
    control = most_certain(labels, uncertainty, 1 - uncertainty, ratios, min_pixels=10)
    assert abs(int(control.sum()) - int(seeds.sum())) <= 1
    assert (seeds & (labels == 1)).any() and not (control & (labels != 0)).any()
    same = same_share(frequencies, beta=0.2)
    assert same[0] == same[1] == pytest.approx(float(0.7 * ratios[0] + 0.3 * ratios[1]))
    assert ratios[0] < same[0] < ratios[1]


def test_controls_reach_adaptation_and_leave_it_as_it_was() -> None:
    with balanced("same"):
        assert guidance.keep_ratios is same_share
    with balanced("none"):
        assert guidance.select_seeds is most_certain
    assert (guidance.keep_ratios, guidance.select_seeds) == (keep_ratios, select_seeds)


@dataclass(frozen=True)
class Endless:
    """In a run's place: what never ends, or is killed once another run is there."""

    folder: Path

    def __call__(self, *killed: object) -> Result:
        (self.folder / str(os.getpid())).touch()
        while len([*self.folder.iterdir()]) < 2 or not killed:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        return RUN


def test_runs_end_with_the_command_and_one_that_dies_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "_run", Endless(tmp_path))
    others = {*multiprocessing.active_children()}  # that other tests have left
    tasks: list[Any] = [(), (True,)]
    with pytest.raises(RuntimeError, match="a run ended with exit code -9"):
        next(ablation.finished(tasks, 2))
    assert len([*tmp_path.iterdir()]) == 2
    for child in {*multiprocessing.active_children()} - others:
        child.join(5)
        assert not child.is_alive()


@pytest.fixture
def few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of its own, in which the game and the city have a few images."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "demo", "presets"):
        Path(name).symlink_to(ROOT / name)
    scenes = {"scenes": {"game": 3, "city": {"train": 3, "val": 2, "test": 2}}}
    write_yaml(tmp_path / "scenes.yaml", scenes)
    monkeypatch.setattr("research.targets.SCENES", tmp_path / "scenes.yaml")


@pytest.mark.usefixtures("few_scenes")
def test_runs_load_by_processes_and_the_command_asks_nothing_of_cuda(
    pretrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that it forks could not use CUDA if it did."""
    little = pretrained | {
        "images.crop": [64, 32],
        "pretrain.iterations": 1,
        "pretrain.batch_size": 2,
        "runtime.device": "auto",
    }
    monkeypatch.setitem(SETTINGS, "default", little)
    monkeypatch.setitem(EVERY, "source_only", replace(VARIANTS["source_only"], changes=little))
    own = os.getpid()

    def available() -> bool:
        assert os.getpid() != own, "the command asked for CUDA before it forked"
        return False

    monkeypatch.setattr(torch.cuda, "is_available", available)
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((1000, 1000), np.uint8), (5, 5), 0)  # whose threads no fork has
    options = ["--variants", "source_only", "--states", "0", "1", "--jobs", "2", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["ablation", *options, "--out", "runs.jsonl"])
    ablation.main()
    first, second = read_results(Path("runs.jsonl"))
    assert (first.random_state, second.random_state) == (0, 1)
    assert first.test != second.test


@pytest.mark.soak
@pytest.mark.usefixtures("few_scenes")
def test_one_command_runs_the_methods_and_prints_their_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {
        "images.crop": [128, 64],
        "model.channels": 8,
        "pretrain.iterations": 1,
        "pretrain.batch_size": 2,
        "adapt.iterations": 1,
        "adapt.batch_size": 2,
    }
    for name in [*BASELINES]:
        if name in ("method/source_only", "method/hrda"):
            changes = tiny | dict(BASELINES[name].changes)
            monkeypatch.setitem(EVERY, name, replace(BASELINES[name], changes=changes))
        else:
            monkeypatch.delitem(BASELINES, name)
    monkeypatch.setattr(sys, "argv", ["baselines", "--states", "0", "--out", "runs.jsonl"])
    baselines.main()
    told = capsys.readouterr().out
    assert "0 runs are there, 2 to do" in told
    assert "| `method/source_only` | source only, as many steps |" in told
    assert "| `method/hrda` | and two resolutions (HRDA) |" in told
    baselines.main()
    assert "2 runs are there, 0 to do" in capsys.readouterr().out


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def test_processes_that_load_images_do_not_make_another_run() -> None:
    few, more = (job("short", "city", "full", 0, "data", workers=workers) for workers in (0, 2))
    assert few.key == more.key
    assert (few.params.runtime.workers, more.params.runtime.workers) == (0, 2)
