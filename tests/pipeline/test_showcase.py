"""The picture that shows what adaptation does: what its rows hold, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.made_up import convert_game, write_game
from pipeline.drawing import figures
from pipeline.paths import ADAPTED, PRETRAINED, SOURCES, TARGET_REPORT
from pipeline.showcase import as_wide, showcase
from ssda.datasets.loading import read_image, read_label
from ssda.engine.checkpoints import load_network
from ssda.engine.evaluation import predict_labels
from ssda.files import write_json
from tests.conftest import make_params, write_varied_network

PARAMS = make_params({"runtime.device": "cpu"})
SCORES = {"source_only": {"miou": 23.29}, "adapted": {"miou": 56.73}}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(Path("metrics/evaluate.json"), SCORES)
    for state, path in enumerate((PRETRAINED, ADAPTED)):
        write_varied_network(path, random_state=state)


def test_a_row_is_source_target_before_after_and_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    source = convert_game(write_game(Path("game"), 4, (64, 64)), SOURCES / "game")
    report = convert_game(write_game(Path("city"), 6, (96, 32)), TARGET_REPORT)
    drawn: list[tuple[list[str], list[list[np.ndarray]]]] = []
    grid = figures.grid

    def watched(titles: list[str], rows: list[list[np.ndarray]], *rest: Any, cell: float) -> Figure:
        drawn.append((titles, rows))
        return grid(titles, rows, *rest, cell=cell)

    monkeypatch.setattr(figures, "grid", watched)
    showcase(PARAMS, Path("out/picture.png"), 2)
    ((titles, rows),) = drawn
    assert titles == [
        *("source: game", "target", "source only: 23.3 mIoU", "adapted: 56.7 mIoU", "truth")
    ]
    assert len(rows) == 2
    game, image, before, after, truth = rows[1]
    record = report.records[3]
    assert (image == read_image(report.image_path(record))).all()
    assert (truth == read_label(report.label_path(record))).all()
    assert (game == read_image(source.image_path(source.records[2]))[21:42]).all()
    for path, says in ((PRETRAINED, before), (ADAPTED, after)):
        seen = torch.from_numpy(image).permute(2, 0, 1)
        expected = predict_labels(load_network(path)[0], seen, torch.Size(truth.shape))
        assert (says == expected.numpy()).all()
    assert (before != after).any()
    assert read_image(Path("out/picture.png")).shape[1] == 5 * 242


def test_what_is_not_there_is_said_before_any_work() -> None:
    Path("metrics/evaluate.json").unlink()
    with pytest.raises(ValueError, match=r"metrics/evaluate.json, .*: not both are here; run dvc"):
        showcase(PARAMS, Path("picture.png"), 1)
    write_json(Path("metrics/evaluate.json"), SCORES | {"source_only": None})
    with pytest.raises(ValueError, match=r"pretrain.iterations: 0; there is no network"):
        showcase(PARAMS, Path("picture.png"), 1)


@pytest.mark.parametrize(
    ("size", "other", "part"),
    [
        ((60, 100), (10, 20), (50, 100)),
        ((60, 100), (10, 10), (60, 60)),
        ((6, 10), (6, 10), (6, 10)),
    ],
)
def test_as_wide(size: tuple[int, int], other: tuple[int, int], part: tuple[int, int]) -> None:
    cut = as_wide(np.zeros((*size, 3), np.uint8), np.zeros((*other, 3), np.uint8))
    assert cut.shape[:2] == part
