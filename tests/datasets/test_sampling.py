import numpy as np
import pytest

from ssda.datasets.sampling import class_probabilities, draw_crop, rare_class_sampler


def test_probabilities_equal_the_formula_and_favour_rare_classes() -> None:
    frequencies = np.array([0.7, 0.29, 0.01])
    expected = np.exp((1 - frequencies) / 0.5)
    np.testing.assert_allclose(class_probabilities(frequencies, 0.5), expected / expected.sum())
    assert np.isfinite(class_probabilities(frequencies, 1e-3)).all()


def test_draws_have_the_probabilities_of_a_brute_force_count() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 1000, (30, 4))
    pixels[:, 3] = 0
    pixels[5, 2] = 5000
    sampler = rare_class_sampler(pixels, temperature=0.3, min_pixels=500)
    shares = pixels.sum(0) / pixels.sum()
    weights = [np.exp((1 - shares[c]) / 0.3) for c in range(3)]
    counts = np.zeros((30, 4))
    for i in range(20_000):
        image, class_id = sampler.draw(np.random.default_rng(i))
        assert pixels[image, class_id] > 500
        counts[image, class_id] += 1
    assert counts[:, 3].sum() == 0
    for class_id in range(3):
        wanted = weights[class_id] / sum(weights)
        assert counts[:, class_id].sum() / 20_000 == pytest.approx(wanted, abs=0.015)
        showing = pixels[:, class_id] > 500
        each = counts[showing, class_id] / counts[:, class_id].sum()
        np.testing.assert_allclose(each, 1 / showing.sum(), atol=0.02)


def test_without_any_image_of_enough_pixels_the_parameter_is_named() -> None:
    with pytest.raises(ValueError, match=r"sampling.min_pixels = 100.*largest count is 7"):
        rare_class_sampler(np.array([[7, 3]]), 0.1, 100)


def test_a_crop_is_drawn_again_until_it_shows_the_wanted_class() -> None:
    label = np.zeros((20, 200), np.uint8)
    label[:, 100:110] = 7
    hits = 0
    for state in range(100):
        rng = np.random.default_rng(state)
        y, x = draw_crop(label, (20, 20), rng, max_class_share=1.0, wanted=7, min_pixels=50)
        hits += (label[y : y + 20, x : x + 20] == 7).sum() > 50
    once = np.mean(
        [
            (label[:, (x := np.random.default_rng(s).integers(181)) : x + 20] == 7).sum() > 50
            for s in range(100)
        ]
    )
    assert hits / 100 > once + 0.3


def test_a_crop_is_drawn_again_while_one_class_fills_it() -> None:
    label = np.zeros((10, 100), np.uint8)
    label[:, 60:] = 1
    shares = []
    for state in range(50):
        y, x = draw_crop(label, (20, 10), np.random.default_rng(state), max_class_share=0.75)
        shares.append(np.bincount(label[y : y + 10, x : x + 20].ravel()).max() / 200)
    assert np.mean(np.array(shares) < 0.75) > 0.5


@pytest.mark.parametrize("max_class_share", [0.75, 1.0])
def test_a_crop_is_drawn_again_while_nothing_is_labelled(max_class_share: float) -> None:
    label = np.full((10, 100), 255, np.uint8)
    label[:, 60:] = np.arange(40) % 2
    void = 0
    for state in range(500):
        rng = np.random.default_rng(state)
        _, x = draw_crop(label, (20, 10), rng, max_class_share=max_class_share)
        void += (label[:, x : x + 20] == 255).all()
    assert void <= 2  # 41 of 81 places are void: 0.5 of 500 after ten draws


def test_the_last_crop_is_taken_where_none_fits() -> None:
    label = np.full((10, 30), 255, np.uint8)
    y, x = draw_crop(label, (10, 10), np.random.default_rng(0), max_class_share=0.75, wanted=3)
    assert 0 <= x <= 20 and y == 0
