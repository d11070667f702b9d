"""Windows and the fusion of two resolutions against slow forms."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from ssda.networks.windows import cut, draw_corners, fuse, halve, slide, window_corners


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def slow_fuse(
    low: torch.Tensor, high: torch.Tensor, attention: torch.Tensor, corner: tuple[int, int] | None
) -> torch.Tensor:
    """HRDA written out for one pass and one image, (C, h, w), pixel by pixel where it can be."""
    classes, h, w = low.shape
    inside = torch.ones(h, w)
    placed = high
    if corner is not None:
        placed = torch.zeros(classes, 2 * h, 2 * w)
        for y in range(high.shape[1]):
            for x in range(high.shape[2]):
                placed[:, corner[0] + y, corner[1] + x] = high[:, y, x]
        for y in range(h):
            for x in range(w):
                rows = corner[0] <= 2 * y < corner[0] + high.shape[1]
                columns = corner[1] <= 2 * x < corner[1] + high.shape[2]
                inside[y, x] = float(rows and columns)
    share = attention * inside

    def up(values: torch.Tensor) -> torch.Tensor:
        grown = torch.empty(classes, 2 * h, 2 * w)
        for y in range(2 * h):
            for x in range(2 * w):
                v, u = (y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5
                y0, x0 = int(np.floor(v)), int(np.floor(u))
                total = torch.zeros(classes)
                for yy, wy in ((y0, 1 - (v - y0)), (y0 + 1, v - y0)):
                    for xx, wx in ((x0, 1 - (u - x0)), (x0 + 1, u - x0)):
                        total += wy * wx * values[:, min(max(yy, 0), h - 1), min(max(xx, 0), w - 1)]
                grown[:, y, x] = total
        return grown

    return up((1 - share) * low) + up(share) * placed


@pytest.mark.parametrize("cropped", [True, False])
def test_fused_logits_equal_the_written_out_form(cropped: bool) -> None:
    torch.manual_seed(0)
    low, attention = torch.randn(2, 2, 3, 4, 6), torch.rand(2, 3, 4, 6)
    size = (4, 6) if cropped else (8, 12)
    high = torch.randn(2, 2, 3, *size)
    corners = [(2, 4), (4, 0)] if cropped else None
    fused = fuse(low, high, attention, corners)
    for k in range(2):
        for n in range(2):
            corner = corners[n] if corners else None
            expected = slow_fuse(low[k, n], high[k, n], attention[n], corner)
            torch.testing.assert_close(fused[k, n], expected)


def test_without_attention_the_context_speaks_alone() -> None:
    low, high = torch.randn(1, 1, 2, 4, 4), torch.randn(1, 1, 2, 8, 8)
    fused = fuse(low, high, torch.zeros(1, 2, 4, 4))
    expected = functional.interpolate(low[0], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(fused[0], expected)
    torch.testing.assert_close(fuse(low, high, torch.ones(1, 2, 4, 4)), high)


def test_corners_lie_on_the_grid_and_reach_the_rims() -> None:
    corners = draw_corners((64, 128), (32, 64), 8, generators(400))
    assert {y for y, _ in corners} == set(range(0, 33, 8))
    assert {x for _, x in corners} == set(range(0, 65, 8))


def test_cut_takes_each_image_s_own_window() -> None:
    values = torch.arange(2 * 4 * 4).view(2, 4, 4)
    parts = cut(values, [(0, 1), (2, 2)], (2, 2))
    assert torch.equal(parts[0], values[0, 0:2, 1:3])
    assert torch.equal(parts[1], values[1, 2:4, 2:4])


def test_windows_cover_the_image_and_end_at_its_rims() -> None:
    covered = np.zeros((50, 70), int)
    for y, x in window_corners((50, 70), (20, 30), (10, 15)):
        assert y + 20 <= 50 and x + 30 <= 70
        covered[y : y + 20, x : x + 30] += 1
    assert covered.min() >= 1
    assert window_corners((20, 30), (20, 30), (10, 15)) == [(0, 0)]


@pytest.mark.parametrize("per_pass", [1, 2, 100])
def test_sliding_averages_what_overlaps(per_pass: int) -> None:
    """A prediction that looks at single cells is the same in every window, so their mean is it."""
    images = torch.rand(2, 3, 32, 48)

    def predict(crops: torch.Tensor) -> torch.Tensor:
        return torch.stack([functional.avg_pool2d(crops, 4), functional.max_pool2d(crops, 4)])

    slid = slide(images, (16, 24), (8, 12), per_pass, predict)
    torch.testing.assert_close(slid, predict(images))


def test_sliding_weighs_windows_alike() -> None:
    numbers = iter((1.0, 2.0, 3.0))
    slid = slide(
        torch.zeros(1, 3, 4, 8),
        (4, 4),
        (4, 2),
        1,
        lambda crops: torch.full((1, 1, 1, 4, 4), next(numbers)),
    )
    assert slid[0, 0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2.5, 2.5, 3, 3]


def test_halving_is_the_bilinear_half() -> None:
    images = torch.rand(1, 3, 8, 12)
    half = functional.interpolate(images, scale_factor=0.5, mode="bilinear")
    torch.testing.assert_close(halve(images), half)
