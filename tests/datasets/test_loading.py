import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from demo.scenes import write_cityscapes, write_gta, write_synthia
from ssda.datasets.conversion import convert_split
from ssda.datasets.index import Index, class_frequencies, read_index
from ssda.datasets.layouts import load_layout
from ssda.datasets.loading import (
    EvaluationSamples,
    SourceSamples,
    TargetSamples,
    counted_pixels,
    evaluation_batches,
    source_batches,
    target_batches,
)
from ssda.labels import CITYSCAPES
from ssda.params import Margins
from tests.conftest import make_params

PARAMS = make_params({"images.crop": [48, 24], "sampling.min_pixels": 5})
MARGINS = Margins(top=2, bottom=4, left=1, right=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("source")
    write_gta(folder / "raw", 5, size=(36, 68), processes=1)
    return convert_split(
        load_layout("gta"),
        folder / "raw",
        "train",
        folder / "converted",
        space=CITYSCAPES,
        with_labels=True,
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("target")
    write_cityscapes(folder / "raw", {"train": 5}, size=(32, 64), processes=1)
    return convert_split(
        load_layout("cityscapes"),
        folder / "raw",
        "train",
        folder / "converted",
        space=CITYSCAPES,
        with_labels=False,
    )


def source_samples(index: Index, random_state: int = 0) -> SourceSamples:
    return SourceSamples([index], PARAMS.images, PARAMS.sampling, random_state, "test")


def target_samples(index: Index) -> TargetSamples:
    return TargetSamples(index, PARAMS.images, MARGINS, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_sample_i_is_the_same_in_any_order_and_process(source: Index, workers: int) -> None:
    samples = source_samples(source)
    alone = samples[5]
    first, second = source_batches(samples, range(1, 3), 2, workers)
    assert torch.equal(second.images[1], alone[0])
    assert torch.equal(second.labels[1], alone[1])
    assert not torch.equal(first.images[0], first.images[1])
    assert not torch.equal(source_samples(source, 1)[5][0], alone[0])


def test_a_worker_reads_images_in_one_thread(
    source: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where OpenCV has had threads before: they would not survive the fork."""

    def read(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        image = np.full((36, 68, 3), cv2.getNumThreads(), np.uint8)
        return cv2.resize(cv2.resize(image, (2000, 2000)), (68, 36))

    cv2.setNumThreads(2)
    monkeypatch.setattr("ssda.datasets.loading.read_image", read)  # workers are forked
    assert (read(Path()) == 2).all()
    (batch,) = source_batches(source_samples(source), range(1), 2, 1)
    assert (batch.images == 1).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_come_in_order_and_of_one_size_together(source: Index, workers: int) -> None:
    records = list(source.records)
    for i in (2, 3):
        path = source.folder.parent.absolute() / f"small{i}.png"
        cv2.imwrite(str(path), np.full((20, 30, 3), i, np.uint8))
        records.insert(i, replace(records[0], image=str(path), label=None, width=30, height=20))
    samples = EvaluationSamples(replace(source, records=tuple(records)), None)
    found = list(evaluation_batches(samples, lambda size: 1 if size == (30, 20) else 2, workers))
    assert [batch.numbers for batch in found] == [[0, 1], [2], [3], [4, 5], [6]]
    for batch in found:
        for i, image, label in zip(batch.numbers, batch.images, batch.labels, strict=True):
            wanted, truth = samples[i]
            assert torch.equal(image, wanted)
            assert label is truth is None or torch.equal(label, truth)  # type: ignore[arg-type]


def test_image_and_label_are_cut_and_mirrored_alike(source: Index) -> None:
    """Each crop is found again, as it is or mirrored, at one place in image and label."""
    scenes = EvaluationSamples(source, None)
    whole = [scenes[n] for n in range(len(scenes))]
    samples = source_samples(source)
    flips = set()
    for i in range(6):
        image, label = samples[i]
        found = [
            (n, y, x, flip)
            for n in range(len(whole))
            for y in range(13)
            for x in range(21)
            for flip in (False, True)
            if torch.equal(_cut(whole[n][0], y, x, flip), image)
        ]
        assert found
        n, y, x, flip = found[0]
        truth = whole[n][1]
        assert truth is not None and torch.equal(_cut(truth, y, x, flip), label)
        flips.add(flip)
    assert flips == {False, True}


def _cut(values: torch.Tensor, y: int, x: int, flip: bool) -> torch.Tensor:
    part = values[..., y : y + 24, x : x + 48]
    return part.flip(-1) if flip else part


def test_every_target_image_comes_once_an_epoch(target: Index) -> None:
    small = replace(target, records=target.records)
    samples = target_samples(small)
    epochs = [{samples[e * 5 + i][0].float().mean().item() for i in range(5)} for e in range(2)]
    assert all(len(means) == 5 for means in epochs)


def test_margins_are_cut_with_the_image(target: Index) -> None:
    counted = counted_pixels((32, 64), MARGINS)
    assert counted.sum() == (32 - 6) * (64 - 4)
    (batch,) = target_batches(target_samples(target), range(1), 5, 0)
    assert batch.counted.dtype == torch.bool
    assert 0 < (~batch.counted).sum() < batch.counted.numel()
    assert not hasattr(batch, "labels")


def test_margins_larger_than_the_image_leave_nothing() -> None:
    for margins in ((0, 33, 0, 0), (40, 0, 0, 0), (20, 20, 0, 0), (0, 0, 0, 99), (0, 0, 64, 0)):
        top, bottom, left, right = margins
        assert not counted_pixels(
            (32, 64), Margins(top=top, bottom=bottom, left=left, right=right)
        ).any()


@pytest.mark.parametrize("margins", [(0, 32, 0, 0), (16, 16, 0, 0), (0, 0, 0, 1000)])
def test_margins_that_leave_nothing_are_refused_before_training(
    target: Index, margins: tuple[int, ...]
) -> None:
    top, bottom, left, right = margins
    given = Margins(top=top, bottom=bottom, left=left, right=right)
    expected = r"^adapt\.margins \(top=.*\): leaves nothing of .*\.png, which is 64 x 32$"
    with pytest.raises(ValueError, match=expected):
        TargetSamples(target, PARAMS.images, given, 0)
    TargetSamples(target, PARAMS.images, Margins(top=0, bottom=31, left=0, right=0), 0)


def test_images_smaller_than_the_crop_are_named(source: Index) -> None:
    images = PARAMS.images.model_copy(update={"crop": (100, 24)})
    with pytest.raises(ValueError, match=r"images.crop = \[100, 24\]: larger than .*png"):
        SourceSamples([source], images, PARAMS.sampling, 0, "test")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line_also_from_a_worker(tmp_path: Path, workers: int) -> None:
    write_gta(tmp_path / "raw", 2, size=(36, 68), processes=1)
    index = convert_split(
        load_layout("gta"),
        tmp_path / "raw",
        "train",
        tmp_path / "converted",
        space=CITYSCAPES,
        with_labels=True,
    )
    samples = source_samples(index)
    first, second = (samples.file(i) for i in (6, 7))
    for damage, expected in (
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "truncated"),
        (lambda path: path.write_bytes(b"no image"), "not a readable image"),
        (lambda path: path.unlink(missing_ok=True), "No such file or directory"),
    ):
        for path in (first, second):
            damage(path)
        with pytest.raises(ValueError, match=rf"^step 3: {first}: {expected}") as caught:
            list(source_batches(samples, range(3, 5), 2, workers))
        assert "\n" not in str(caught.value)


def test_an_image_of_another_size_than_at_conversion_is_named(source: Index) -> None:
    records = tuple(replace(record, width=69) for record in source.records)
    changed = replace(source, records=records)
    expected = r"^/.*png: 68 x 36 pixels, at conversion 69 x 36; run dvc repro$"
    for samples in (
        source_samples(changed),
        target_samples(changed),
        EvaluationSamples(changed, None),
    ):
        with pytest.raises(ValueError, match=expected):
            samples[0]


def test_a_worker_that_an_error_keeps_alive_does_not_keep_its_process(source: Index) -> None:
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=end_with_a_worker, args=(source,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    child.kill()


def end_with_a_worker(index: Index) -> None:
    batches = source_batches(source_samples(index), range(9), 2, 1)
    next(batches)
    sys.modules["kept"] = batches  # pyright: ignore[reportArgumentType]


def test_too_little_shared_memory_is_told_before_training(
    source: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk stands for /dev/shm: a billion workers would fill it."""
    params = make_params({"images.crop": [64, 32]})
    samples = SourceSamples([source], params.images, params.sampling, 0, "test")
    monkeypatch.setattr("ssda.datasets.loading.SHARED_MEMORY", Path("/"))
    with pytest.raises(ValueError, match=r"runtime.workers = 1000000000: needs \d+.\d\d MB of /"):
        next(source_batches(samples, range(1), 1, 10**9))
    assert next(source_batches(samples, range(1), 1, 0)).images.shape == (1, 3, 32, 64)


def test_whole_images_are_read_without_shared_memory_where_it_is_full(
    source: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10**9]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    for bytes_free, workers in ((10**9, 1), (10_000, 0)):
        free[0] = bytes_free
        batches = evaluation_batches(EvaluationSamples(source, None), lambda _: 5, 3)
        others = {*multiprocessing.active_children()}  # that other tests have left
        assert next(batches).images.shape == (5, 3, 36, 68)
        assert len({*multiprocessing.active_children()} - others) == workers
        assert next(batches, None) is None


def test_several_sources_are_pooled_each_at_its_size(tmp_path: Path, source: Index) -> None:
    write_synthia(tmp_path / "raw", 3, size=(40, 80), processes=1)
    synthia = convert_split(
        load_layout("synthia"),
        tmp_path / "raw",
        "train",
        tmp_path / "converted",
        space=CITYSCAPES,
        with_labels=True,
        resize=(60, 30),
    )
    assert read_index(synthia.folder) == synthia
    both = SourceSamples([source, synthia], PARAMS.images, PARAMS.sampling, 0, "test")
    assert both.sampler is not None
    drawn = [both.sampler.draw(np.random.default_rng(i))[0] for i in range(200)]
    places = [both.records[position][0].folder for position in drawn]
    assert 20 < places.count(synthia.folder) < 180
    alone = SourceSamples([synthia], PARAMS.images, PARAMS.sampling, 0, "test")
    image, label = alone[3]
    assert image.shape == (3, 24, 48) and label.shape == (24, 48)
    counts = np.zeros(CITYSCAPES.num_classes)
    for index in (source, synthia):
        for record in index.records:
            label = cv2.imread(str(index.label_path(record)), cv2.IMREAD_UNCHANGED)
            assert label is not None
            for train in range(CITYSCAPES.num_classes):
                counts[train] += (label == train).sum()
    np.testing.assert_allclose(class_frequencies([source, synthia]), counts / counts.sum())
    with pytest.raises(ValueError, match=r"images.crop = \[48, 31\]: larger than .*RGB/0000000"):
        images = PARAMS.images.model_copy(update={"crop": (48, 31)})
        SourceSamples([source, synthia], images, PARAMS.sampling, 0, "test")


def test_resizing_keeps_label_values(source: Index) -> None:
    _, label = source_samples(replace(source, resize=(50, 30)))[0]
    assert set(np.unique(label)) <= {*range(19), 255}
