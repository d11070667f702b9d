"""Pictures: what a person reads must lie inside and over nothing else."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pipeline.drawing.figures import LARGEST_MATRIX, grid, matrices
from ssda.labels import CITYSCAPES, LabelSpace


def space_of(count: int) -> LabelSpace:
    names = [f"a class of number {i}" for i in range(count)]
    colours = [(i, 255 - i, i // 2) for i in range(count)]
    return LabelSpace(tuple(names), tuple(colours), (), {})


def megapixels(figure: Figure) -> float:
    width, height = figure.get_size_inches() * figure.dpi
    return width * height / 1e6


@pytest.mark.parametrize("columns", [1, 3, 6])
@pytest.mark.parametrize("space", [CITYSCAPES, space_of(150), space_of(254)])
def test_the_legend_lies_below_the_pictures(space: LabelSpace, columns: int) -> None:
    ids = np.arange(256 * 4, dtype=np.uint8).reshape(16, 64)
    figure = grid(["ids"] * columns, [[ids] * columns] * 2, space, title="all of them")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert [text.get_text() for text in legend.get_texts()] == ["(no label)", *space.names]
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1
    assert whole.y0 <= box.y0 and box.y1 <= min(axis.bbox.y0 for axis in figure.axes)
    assert all(axis.bbox.width > 0.7 * whole.width / columns for axis in figure.axes)
    assert megapixels(figure) < 5


def test_the_legend_has_the_classes_that_are_shown() -> None:
    ids, image = np.full((4, 4), 13, np.uint8), np.zeros((4, 4, 3), np.uint8)
    figure = grid(["image", "ids", "sure"], [[image, ids, np.ones((4, 4))]], CITYSCAPES)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["(no label)", "car"]


def test_a_confusion_matrix_can_be_read_with_many_classes() -> None:
    space = space_of(254)
    shares = torch.zeros(254, 254)
    shares.fill_diagonal_(90)
    worst = torch.arange(3, 203, 5)
    shares[worst, worst] = 20
    shares[3] = torch.nan
    figure = matrices({"before": shares, "after": shares}, space)
    assert megapixels(figure) < 5
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == LARGEST_MATRIX
    assert {space.names[i] for i in worst.tolist()[1:]} < {*names} and space.names[3] not in names
    assert "the 40 classes found worst" in figure.get_suptitle()
    few = matrices({"after": torch.eye(19) * 100}, CITYSCAPES)
    assert [label.get_text() for label in few.axes[0].get_yticklabels()] == [*CITYSCAPES.names]
