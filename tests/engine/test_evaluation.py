"""Whole images, sliding windows and mirrored images."""

import copy
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from ssda.datasets import loading
from ssda.datasets.index import Index, Record
from ssda.datasets.loading import EvaluationSamples, read_image, read_label
from ssda.engine.evaluation import (
    class_shift,
    evenly_chosen,
    label_free_score,
    predict_labels,
    score,
    validation_scores,
    windowed_logits,
)
from ssda.engine.metrics import confusion_matrix, mean_iou
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Windows
from tests.conftest import SMALL_NETWORK, make_model, make_params, unlabelled_index, varied_network


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return varied_network(make_model(SMALL_NETWORK), 5).eval()


def images(height: int, width: int, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(96, 64), (200, 200)])
def test_one_window_as_large_as_the_image_is_the_image(
    network: Segmenter, size: tuple[int, int]
) -> None:
    windows = Windows(extent=size, step=(32, 32))
    whole = functional.interpolate(
        windowed_logits(network, images(64, 96)), (64, 96), mode="bilinear"
    )
    torch.testing.assert_close(windowed_logits(network, images(64, 96), windows=windows), whole)


@pytest.mark.parametrize("per_pass", [1, 4])
def test_windows_are_averaged_at_full_size(network: Segmenter, per_pass: int) -> None:
    """Written out window by window."""
    image = images(80, 96)
    total, count = torch.zeros(1, 5, 80, 96), torch.zeros(80, 96)
    for y in (0, 16):
        for x in (0, 32):
            logits = windowed_logits(network, image[..., y : y + 64, x : x + 64])
            full = functional.interpolate(logits, (64, 64), mode="bilinear")
            total[..., y : y + 64, x : x + 64] += full
            count[y : y + 64, x : x + 64] += 1
    windows = Windows(extent=(64, 64), step=(32, 32))
    slid = windowed_logits(network, image, windows=windows, per_pass=per_pass)
    torch.testing.assert_close(slid, total / count, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("windows", [None, Windows(extent=(64, 64), step=(32, 32))])
def test_mirrored_images_have_mirrored_logits(network: Segmenter, windows: Windows | None) -> None:
    image = images(64, 128)
    both = windowed_logits(network, image, windows=windows, flip=True)
    plain = windowed_logits(network, image, windows=windows)
    assert not torch.allclose(both, plain)
    torch.testing.assert_close(
        both, windowed_logits(network, image.flip(-1), windows=windows, flip=True).flip(-1)
    )
    alone = windowed_logits(network, image.flip(-1), windows=windows).flip(-1)
    torch.testing.assert_close(both, (plain + alone) / 2)


def test_labels_have_the_size_asked_for(network: Segmenter) -> None:
    windows = Windows(extent=(64, 64), step=(32, 32))
    labels = predict_labels(network, images(50, 77)[0], torch.Size((100, 154)), windows=windows)
    assert labels.shape == (100, 154) and labels.dtype == torch.uint8


@pytest.fixture
def labelled(tmp_path: Path) -> Index:
    """Five images of 96 x 64 with random labels."""
    index = unlabelled_index(tmp_path, images(64, 96, 5))
    (tmp_path / "labels").mkdir()
    generator = np.random.default_rng(0)
    for record in index.records:
        label = generator.integers(0, 6, (64, 96)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "labels" / record.image), np.where(label == 5, 255, label))
    return replace(
        index, records=tuple(replace(record, label=record.image) for record in index.records)
    )


VIEWS = (
    {},
    {"evaluate.flip": True, "images.target_size": [48, 32], "images.crop": [32, 32]},
    {"evaluate.windows": {"extent": [64, 64], "step": [32, 32]}},
)


@pytest.mark.parametrize("overrides", VIEWS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_score_counts_every_pixel_of_every_network_as_evaluate_says(
    network: Segmenter, labelled: Index, overrides: dict[str, Any], workers: int
) -> None:
    """Written out image by image."""
    params = make_params(
        {"runtime.workers": workers, "runtime.evaluation_batch_size": 2} | overrides
    )
    other = copy.deepcopy(network).train()
    for weights in other.classifier.parameters():
        weights.data.neg_()
    found = score([network, other], labelled, params)
    assert other.training and not torch.equal(*found)
    windows, flip = params.evaluate.windows, params.evaluate.flip
    for each, confusion in zip((network, other.eval()), found, strict=True):
        wanted = torch.zeros(5, 5, dtype=torch.int64)
        for record in labelled.records:
            image = torch.from_numpy(
                read_image(labelled.image_path(record), params.images.target_size)
            ).permute(2, 0, 1)
            truth = torch.from_numpy(read_label(labelled.label_path(record)))
            guess = predict_labels(each, image, truth.shape, windows=windows, flip=flip)
            wanted += confusion_matrix(guess, truth, num_classes=5)
        # A batch sums in another order than an image: a pixel in a thousand may be a tie.
        assert (confusion - wanted).abs().sum() <= 2 * 0.001 * wanted.sum()
        assert confusion.sum() == wanted.sum() > 0


def test_each_image_and_label_is_read_once_for_all_networks(
    network: Segmenter, labelled: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def watch(name: str) -> None:
        original = getattr(loading, name)

        def reading(path: Path, *arguments: Any) -> Any:
            read.append(f"{name} {path.name}")
            return original(path, *arguments)

        monkeypatch.setattr(loading, name, reading)

    watch("read_image")
    watch("read_label")
    score([network] * 3, labelled, make_params({"runtime.workers": 0}))
    assert sorted(read) == sorted(
        f"{name} {i}.png" for name in ("read_image", "read_label") for i in range(5)
    )


def test_scoring_keeps_one_batch_of_images(
    network: Segmenter, labelled: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the peak of memory does not depend on how many images there are."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = EvaluationSamples.__getitem__

    def reading(samples: EvaluationSamples, i: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        nonlocal most
        image, label = read(samples, i)
        most = max(most, sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(image))
        return image, label

    monkeypatch.setattr(EvaluationSamples, "__getitem__", reading)
    index = replace(labelled, records=labelled.records * 3)
    params = make_params({"runtime.workers": 0, "runtime.evaluation_batch_size": 2})
    assert score([network], index, params)[0].sum() > 0
    assert len(alive) == 15 and most <= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line(
    network: Segmenter, labelled: Index, workers: int
) -> None:
    path = labelled.image_path(labelled.records[3])
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=str(path)) as caught:
        score([network], labelled, make_params({"runtime.workers": workers}))
    assert "\n" not in str(caught.value)


def test_a_label_that_is_no_class_is_told(network: Segmenter, labelled: Index) -> None:
    path = labelled.label_path(labelled.records[3])
    cv2.imwrite(str(path), np.full((64, 96), 5, np.uint8))
    with pytest.raises(ValueError, match="target has class 5, allowed are 0 to 4"):
        score([network], labelled, make_params({"runtime.workers": 0}))


def test_the_curve_is_of_the_first_subset_and_of_all_classes_without(
    network: Segmenter, labelled: Index
) -> None:
    space = replace(CITYSCAPES, subsets={"few": (0, 2), "16": (1, 3)})
    index = replace(labelled, space=space)
    params = make_params({"runtime.workers": 0})
    (confusion,) = score([network], index, params)
    chosen = params.evaluate.model_copy(update={"subsets": ("few", "16")})
    some = params.model_copy(update={"evaluate": chosen})
    assert validation_scores([network], index, some) == [mean_iou(confusion, (0, 2))]
    assert validation_scores([network], index, params) == [mean_iou(confusion)]


def test_the_label_free_score_is_information_less_the_shift_of_classes(
    network: Segmenter, tmp_path: Path
) -> None:
    shots = images(64, 96, 5)
    index = unlabelled_index(tmp_path, shots)
    params = make_params({"images.target_size": None})
    p = windowed_logits(network, shots).softmax(1).double().transpose(0, 1).flatten(1)
    mean = p.mean(1)
    information = -(mean * mean.log2()).sum() + (p * p.log2()).sum(0).mean()
    assert information > 0.0
    unmoved = label_free_score(network, index, mean, params)
    assert unmoved == pytest.approx(float(information), rel=1e-4)
    frequencies = torch.tensor([0.2, 0.2, 0.2, 0.4, 0.0], dtype=torch.float64)
    shift = (mean * (mean / frequencies.clamp_min(1e-6)).log2()).sum()
    assert shift > 0.0
    moved = label_free_score(network, index, frequencies, params)
    assert moved == pytest.approx(float(information - shift), rel=1e-4)


@pytest.mark.parametrize(("images", "taken"), [(4, [0, 1, 2, 3]), (5, [0, 2, 4]), (9, [0, 3, 6])])
def test_images_are_spread_over_a_split_and_never_more_than_asked_for(
    images: int, taken: list[int]
) -> None:
    records = tuple(
        Record(f"{i}", f"{i}.png", 0, "", f"{i}.png", 8, 8, None) for i in range(images)
    )
    index = Index(Path("raw"), Path("raw"), CITYSCAPES, records)
    found = evenly_chosen(index, 4, make_params()).index.records
    assert [record.name for record in found] == [f"{i}" for i in taken]
    assert all(record.label is None for record in found)


def test_a_class_that_is_never_predicted_shifts_by_a_finite_number() -> None:
    shares = torch.tensor([0.0, 1.0])
    assert class_shift(shares, torch.tensor([0.5, 0.5])) == pytest.approx(1.0)
    assert class_shift(shares, shares) == 0.0
    assert 0.0 < class_shift(shares, torch.tensor([1.0, 0.0])) < 25.0
