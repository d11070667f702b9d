"""All that runs on a GPU, on one that is not there."""

from typing import Any

import pytest
import torch

from benchmarks.counts import Counted, count_step, made_up_images
from benchmarks.fake_cuda import CUDA, FakeCuda, Seen, fake_cuda
from pipeline.overlays import load_preset
from ssda.datasets.index import Index
from ssda.engine.evaluation import label_free_score, predict_uncertainty, validation_scores
from ssda.engine.statistics import use_target_statistics
from ssda.networks.segmenter import Prediction, Segmenter, Views
from ssda.params import Params
from ssda.sections import changed

MOST_WAITS = 2
CROP = 128
SMALL = {
    "demo": "test_efficientnet",
    "gta_resnet101": "test_resnet",
    "gta_mit_b5": "mit_b0",
    "gta_dinov3_l": "vit_small_patch16_dinov3",
}
"""Presets of each kind, and a small encoder of the kind."""


def small(name: str) -> Params:
    """A preset at a small crop with a small encoder of the same kind."""
    params = load_preset(name)
    detail = None if params.model.detail is None else (CROP // 2, CROP // 2)
    little = {
        "images.crop": (CROP, CROP),
        "images.target_size": None,
        "model.encoder": SMALL[name],
        "model.channels": 32,
        "model.detail": detail,
        "adapt.batch_size": min(4, params.adapt.batch_size),
        "adapt.optimiser.warmup": 0,
    }
    return changed(params, little)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return made_up_images(tmp_path_factory.mktemp("images"), 2, (160, 128))


@pytest.fixture
def logit_types(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Of all that networks say, in training and in evaluation."""
    found: list[torch.dtype] = []
    predict, observe = Segmenter.predict, Segmenter.observe

    def predicted(self: Segmenter, *arguments: Any) -> Prediction:
        said = predict(self, *arguments)
        found.extend((said.logits.dtype, said.members.dtype))
        return said

    def observed(self: Segmenter, *arguments: Any) -> Views:
        views = observe(self, *arguments)
        found.extend(logits.dtype for logits in (views.logits, views.detail) if logits is not None)
        return views

    monkeypatch.setattr(Segmenter, "predict", predicted)
    monkeypatch.setattr(Segmenter, "observe", observed)
    return found


def check_step(step: Counted, logit_types: list[torch.dtype]) -> None:
    seen, record = step.seen, step.record
    assert sum(seen.waits.values()) <= MOST_WAITS, seen.waits
    assert record.problem is None
    losses = record.report.losses
    assert losses.keys() > {"source", "mix", "trucrf"}
    assert {(loss.dtype, loss.device) for loss in losses.values()} == {(torch.float32, CUDA)}
    assert set(logit_types) == {torch.float32}
    assert 0.8 < seen.share(torch.bfloat16) < 1.0  # the rest: classifiers and their gradients
    student = step.networks.student
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert {(g.dtype, g.device) for g in gradients} == {(torch.float32, CUDA)}
    assert len(gradients) > 0.9 * len(list(student.parameters()))


def check_scoring(step: Counted, params: Params, images: Index, gpu: FakeCuda) -> None:
    student, teacher = step.networks.student, step.networks.teacher
    use_target_statistics(student, images, params)
    assert len(validation_scores([teacher, student], images, params)) == 2
    frequencies = torch.ones(student.num_classes)
    label_free_score(teacher, images, frequencies, params)
    gpu.seen = Seen()
    size = torch.Size((100, 130))
    noise = torch.zeros(2, 3, 100, 130, dtype=torch.uint8)
    labels, uncertainty = predict_uncertainty(teacher, noise, size, 3, 0, flip=True)
    assert (labels.dtype, labels.device.type) == (torch.uint8, "cpu")
    assert (uncertainty.dtype, uncertainty.device.type) == (torch.float32, "cpu")
    assert gpu.seen.flops


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "gta_resnet101",
        pytest.param("gta_mit_b5", marks=pytest.mark.soak),
        pytest.param("gta_dinov3_l", marks=pytest.mark.soak),
    ],
)
def test_step_statistics_scores_and_prediction_run_on_a_gpu(
    name: str, images: Index, logit_types: list[torch.dtype]
) -> None:
    params = small(name)
    with fake_cuda() as gpu:
        step = count_step(params, images, gpu)
        check_step(step, logit_types)
        check_scoring(step, params, images, gpu)
    assert set(logit_types) == {torch.float32}
