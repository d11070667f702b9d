import math

import pytest
import torch

from ssda.engine.metrics import (
    confusion_matrix,
    intersection_over_union,
    known_classes,
    mean_iou,
    pair_counts,
    pixel_accuracy,
    scattered_counts,
)


def test_confusion_equals_counting_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (3, 7, 8), generator=generator)
    truth[truth == 4] = 255
    guess = torch.randint(0, 4, (3, 7, 8), generator=generator)
    counts = torch.zeros(4, 4, dtype=torch.int64)
    for t, g in zip(truth.flatten().tolist(), guess.flatten().tolist(), strict=True):
        if t != 255:
            counts[t, g] += 1
    matrix = confusion_matrix(guess, truth, num_classes=4)
    assert matrix.dtype == torch.int64
    assert torch.equal(matrix, counts)


@pytest.mark.parametrize("num_classes", [19, 200])
def test_bytes_are_counted_as_whole_numbers_are(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    truth, guess = torch.randint(0, num_classes, (2, 5, 90), generator=generator)
    truth[:2] = 255
    wanted = confusion_matrix(guess, truth, num_classes=num_classes)
    assert wanted.sum() == 3 * 90
    small = confusion_matrix(guess.byte(), truth.byte(), num_classes=num_classes)
    assert torch.equal(small, wanted)
    moved = torch.where(truth == 255, -1, truth)
    other = confusion_matrix(guess, moved, num_classes=num_classes, ignore_index=-1)
    assert torch.equal(other, wanted)


def test_counts_of_several_images_add_up_before_they_are_checked() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, guess = torch.randint(0, 19, (2, 3, 40), generator=generator).byte()
    truth[0, :9] = 255
    counts = sum(
        (pair_counts(g, t, 19) for g, t in zip(guess, truth, strict=True)), torch.zeros(())
    )
    assert torch.equal(known_classes(counts), confusion_matrix(guess, truth, num_classes=19))
    truth[1, 0] = 19
    with pytest.raises(ValueError, match="target has class 19, allowed are 0 to 18"):
        known_classes(pair_counts(guess, truth, 19))


def test_what_counts_on_cuda_counts_alike() -> None:
    values = torch.randint(0, 256 * 19, (5000,), dtype=torch.int16)
    counts = scattered_counts(values, 256 * 19)
    assert torch.equal(counts, torch.bincount(values, minlength=256 * 19))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(("guess", "truth", "wrong"), [(3, 0, "prediction"), (0, 3, "target")])
def test_a_class_out_of_range_is_an_error(
    dtype: torch.dtype, guess: int, truth: int, wrong: str
) -> None:
    with pytest.raises(ValueError, match=f"{wrong} has class 3, allowed are 0 to 2"):
        confusion_matrix(
            torch.tensor([guess], dtype=dtype), torch.tensor([truth], dtype=dtype), num_classes=3
        )


def test_small_integer_types_do_not_overflow() -> None:
    truth = torch.full((10,), 18, dtype=torch.uint8)
    matrix = confusion_matrix(truth, truth, num_classes=19)
    assert matrix[18, 18] == 10


def test_scores_of_a_known_matrix() -> None:
    matrix = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    iou = intersection_over_union(matrix)
    assert iou[:2].tolist() == pytest.approx([50.0, 100 * 4 / 7])
    assert math.isnan(iou[2])
    assert mean_iou(matrix) == pytest.approx((50.0 + 400 / 7) / 2)
    assert mean_iou(matrix, classes=tuple(range(1, len(matrix)))) == pytest.approx(400 / 7)
    assert pixel_accuracy(matrix) == pytest.approx(70.0)


def test_a_class_only_predicted_does_not_count_in_the_mean() -> None:
    matrix = torch.tensor([[3, 1], [0, 0]])
    assert mean_iou(matrix) == pytest.approx(75.0)


def test_without_any_label_there_is_no_score() -> None:
    empty = confusion_matrix(torch.zeros(4), torch.full((4,), 255), num_classes=2)
    assert mean_iou(empty) is None
    assert pixel_accuracy(empty) is None


@pytest.mark.parametrize(("guess", "truth"), [([0, 5], [0, 1]), ([0, 1], [0, 5]), ([0], [0, 1])])
def test_classes_out_of_range_and_other_shapes_are_errors(
    guess: list[int], truth: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"class 5|prediction \(1,\)"):
        confusion_matrix(torch.tensor(guess), torch.tensor(truth), num_classes=5)
