"""The joint step under each method's overlay is the published loss, written out here plainly."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.overlays import load_preset
from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.engine.adapting import projector_of
from ssda.labels import CITYSCAPES, IGNORE
from ssda.method.adaptation import Networks, joint_step
from ssda.method.guidance import Task, guide
from ssda.method.learning import Report
from ssda.method.subdomains import PredictedShares
from ssda.method.teacher import create_teacher, frozen
from ssda.networks.normalisation import reestimate_statistics
from ssda.networks.segmenter import Segmenter, Views, stochastic_pass
from ssda.params import Params
from ssda.randomness import generators
from ssda.sections import changed
from tests.conftest import ROOT, SMALL_ENCODER

CLASSES = CITYSCAPES.num_classes
HEIGHT, WIDTH = 64, 128
SEEDS = ("released", "paper_ratios", "corrected_ratios", "two_resolutions", "vfm_uda_seeds")


def params_of(method: str) -> Params:
    params = load_preset("demo", f"method/{method}")
    detail = None if params.model.detail is None else (WIDTH // 2, HEIGHT // 2)
    little = {
        "images.crop": (WIDTH, HEIGHT),
        "model.detail": detail,
        "model.encoder": SMALL_ENCODER,
        "model.channels": 16,
        "model.dropout": 0.3,
        "adapt.pseudo_labels.confidence_threshold": 0.2,
        "source_augmentation.jitter_probability": 0.0,
        "source_augmentation.blur_probability": 0.0,
        "adapt.augmentation.jitter_probability": 0.0,
        "adapt.augmentation.blur_probability": 0.0,
    }
    return changed(params, little)


def batches() -> tuple[SourceBatch, TargetBatch]:
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, CLASSES, (2, 2, 4), generator=generator)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels[:, :2] = IGNORE
    counted = torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool)
    counted[:, -8:] = False
    images = torch.rand(2, 2, 3, HEIGHT, WIDTH, generator=generator)
    return SourceBatch(images[0], labels), TargetBatch(images[1], counted)


def networks_of(params: Params) -> Networks:
    torch.manual_seed(0)
    student = Segmenter(params.model, CLASSES).train()
    torch.nn.init.normal_(student.classifier.convolutions[0].weight)
    images = [torch.rand(4, 3, HEIGHT, WIDTH)]
    reestimate_statistics(
        student, images, lambda seen: stochastic_pass(student, seen, 1, generators(0, "t", 0, 4))
    )
    imagenet = None
    if params.adapt.losses.feature_distance > 0:
        imagenet = frozen(copy.deepcopy(student.encoder))
        for parameter in imagenet.parameters():
            parameter.data.mul_(1.05)
    predicted, projector = PredictedShares(CLASSES), projector_of(student, params)
    return Networks(student, create_teacher(student), imagenet, predicted, projector)


@dataclass
class Step:
    """A joint step, and what its passes saw and said."""

    params: Params
    networks: Networks
    task: Task
    report: Report
    passes: list[tuple[Tensor, Views]] = field(default_factory=list)
    total: float = 0.0


def step_of(method: str, monkeypatch: pytest.MonkeyPatch) -> Step:
    monkeypatch.chdir(ROOT)
    params = params_of(method)
    frequencies = torch.linspace(1, 20, CLASSES)
    task = Task(params.adapt, frequencies, CITYSCAPES.things, 0, params.source_augmentation)
    step = Step(params, networks_of(params), task, Report({}))

    observe = Segmenter.observe

    def record(student: Segmenter, images: Tensor, *rest: Any) -> Views:
        views = observe(student, images, *rest)
        step.passes.append((images, views))
        return views

    backward = Tensor.backward

    def add_up(loss: Tensor) -> None:
        step.total += loss.item()
        backward(loss)

    monkeypatch.setattr(Segmenter, "observe", record)
    monkeypatch.setattr(Tensor, "backward", add_up)
    step.report = joint_step(step.networks, *batches(), task, 0)
    return step


def entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of the label of each pixel (N, H, W), 0 where it is ignored."""
    large = functional.interpolate(logits.double(), labels.shape[-2:], mode="bilinear")
    p = large.exp() / large.exp().sum(1, keepdim=True)
    ignored = labels == IGNORE
    of_label = p.gather(1, labels.masked_fill(ignored, 0).unsqueeze(1)).squeeze(1)
    return -of_label.log().masked_fill(ignored, 0)


def both(views: Views, labels: Tensor, weights: Tensor | None) -> float:
    """HRDA: 0.9 of the fused logits' loss and 0.1 of the detail's; else that of the one view."""

    def loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> float:
        losses = entropies(logits, labels)
        if weights is None:  # a mean over labelled pixels
            return float(losses.sum() / (labels != IGNORE).sum())
        return float((losses * weights).sum() / losses.numel())

    whole = loss(views.logits[0].detach(), labels, weights)
    if views.detail is None:
        return whole
    here = [(slice(y, y + HEIGHT // 2), slice(x, x + WIDTH // 2)) for y, x in views.corners]

    def part(values: Tensor) -> Tensor:
        return torch.stack([value[place] for value, place in zip(values, here, strict=True)])

    inside = None if weights is None else part(weights)
    return 0.9 * whole + 0.1 * loss(views.detail[0].detach(), part(labels), inside)


def pseudo(step: Step) -> tuple[Tensor, Tensor]:
    """The teacher's labels, and q on the pixels that count."""
    target = batches()[1]
    logits = step.networks.teacher(target.images)
    if step.params.adapt.pseudo_labels.mirrored:
        logits = (logits + step.networks.teacher(target.images.flip(-1)).flip(-1)) / 2
    logits = functional.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear")
    confidence, labels = logits.softmax(1).max(1)
    q = (confidence[target.counted] >= 0.2).double().mean()
    assert 0 < q < 1
    return labels.masked_fill(~target.counted, IGNORE), q * target.counted


def mixing(step: Step, images: Tensor, views: Views) -> float:
    source, target = batches()
    pasted = (images == source.images).all(1)
    assert torch.equal(images[~pasted[:, None].expand_as(images)], _flat(target.images, ~pasted))
    for classes, mask in zip(source.labels, pasted, strict=True):
        there, drawn = (set(v.unique().tolist()) - {IGNORE} for v in (classes, classes[mask]))
        assert len(drawn) == math.ceil(len(there) / 2)
        assert torch.equal(mask, sum((classes == c for c in drawn), torch.zeros_like(mask)).bool())
    labels, weights = pseudo(step)
    weights = torch.where(pasted, 1.0, weights)
    return both(views, torch.where(pasted, source.labels, labels), weights)


def _flat(images: Tensor, mask: Tensor) -> Tensor:
    return images[mask[:, None].expand_as(images)]


def distance(step: Step, images: Tensor, views: Views) -> float:
    """DAFormer: mean L2 distance over cells of which three quarters show one thing."""
    encoder, stride = step.networks.imagenet, step.params.adapt.feature_distance.stride
    assert encoder is not None
    if views.detail is not None:
        images, stride = functional.avg_pool2d(images, 2), 2 * stride
    stage = encoder.stage(step.params.adapt.feature_distance.stride)
    difference = views.features[stage].detach() - encoder(images)[stage]
    cells = batches()[0].labels.view(2, HEIGHT // stride, stride, WIDTH // stride, stride)
    shows = torch.stack([(cells == c).double().mean((2, 4)) for c in step.task.things]).amax(0)
    chosen = shows >= 0.75
    assert chosen.any() and not chosen.all()
    return float(difference.double().square().sum(1).sqrt()[chosen].mean())


def everywhere(step: Step, images: Tensor, views: Views) -> float:
    """VFM-UDA++: 0.1 smooth L1 + 0.9 (1 - cosine) in all cells, behind the projector."""
    encoder, projector = step.networks.imagenet, step.networks.projector
    assert encoder is not None and projector is not None
    stage = encoder.stage(step.params.adapt.feature_distance.stride)
    ours, wanted = projector(views.features[stage]).detach().double(), encoder(images)[stage]
    wanted = wanted.double()
    wanted = wanted - wanted.mean(1, keepdim=True)
    wanted = wanted / (wanted.square().mean(1, keepdim=True) + 1e-5).sqrt()
    apart = (ours - wanted).abs()
    smooth = torch.where(apart < 1, apart.square() / 2, apart - 0.5).mean(1)
    cosine = (ours * wanted).sum(1) / (ours.norm(dim=1) * wanted.norm(dim=1))
    return float((0.1 * smooth + 0.9 * (1 - cosine)).mean())


def disagreement(views: Views) -> float:
    """Mutual information of the student's passes, in bits."""
    p = views.logits.detach().double().softmax(2)
    mean = p.mean(0)
    bits = [-(each * each.log2()).sum(1).mean() for each in p]
    return float(-(mean * mean.log2()).sum(1).mean() - sum(bits) / len(bits))


def crf(step: Step, views: Views, seeds: Tensor) -> float:
    """Pair by pair of neighbours: a pixel that is no seed, and a seed."""
    settings, target = step.params.adapt.trucrf, batches()[1]
    p = views.logits[0].detach().double().softmax(1)
    size = (p.shape[-2], p.shape[-1])
    colours = functional.adaptive_avg_pool2d(target.images.double(), size)
    total, radius = 0.0, settings.radius
    for n, y, x in (~seeds).nonzero().tolist():
        rows = slice(max(0, y - radius), y + radius + 1)
        columns = slice(max(0, x - radius), x + radius + 1)
        down, across = torch.meshgrid(
            torch.arange(size[0])[rows] - y, torch.arange(size[1])[columns] - x, indexing="ij"
        )
        apart = (down**2 + across**2) / (2 * settings.sigma_xy**2)
        here = (n, slice(None), rows, columns)
        unlike = (colours[here] - colours[n, :, y, x, None, None]).square().sum(0)
        alike = torch.exp(-apart - unlike / (2 * settings.sigma_rgb**2))
        differ = 1 - (p[here] * p[n, :, y, x, None, None]).sum(0)
        total += float((seeds[n, rows, columns] * alike * differ).sum())
    return total / int((~seeds).sum())


def target_losses(step: Step, views: Views) -> dict[str, float]:
    """SSDA's, on the seeds that its guidance chooses (tests/method/test_subdomains.py)."""
    networks, target = step.networks, batches()[1]
    seeds = guide(networks.teacher, networks.predicted, target, step.task, 0).seeds
    assert seeds is not None
    size = HEIGHT // seeds.shape[-2]
    large = seeds.repeat_interleave(size, 1).repeat_interleave(size, 2)
    labels, weights = pseudo(step)
    return {
        "seed": both(views, labels, weights * large),
        "uncertainty": disagreement(views),
        "trucrf": crf(step, views, seeds),
    }


PUBLISHED: dict[str, dict[str, float]] = {
    "adabn": {"source": 1},
    "dacs": {"source": 1, "mix": 1},
    "daformer": {"source": 1, "mix": 1, "feature_distance": 0.005},
    "hrda": {"source": 1, "mix": 1, "feature_distance": 0.005},
    "mic": {"source": 1, "mix": 1, "feature_distance": 0.005, "masked": 1},
}
for name, w_t, w_crf in (
    ("released", 0.01, 0.1),
    ("paper_ratios", 0.1, 1.0),
    ("corrected_ratios", 1.0, 0.1),
    ("two_resolutions", 0.1, 1.0),
):
    target_weights = {"seed": w_t, "uncertainty": w_t, "trucrf": w_t * w_crf}
    PUBLISHED[name] = PUBLISHED["daformer"] | target_weights
PUBLISHED["vfm_uda"] = {
    "source": 1,
    "mix": 1,
    "masked": 1,
    "feature_distance": 0.1,
    "target_feature_distance": 0.1,
}
PUBLISHED["vfm_uda_seeds"] = PUBLISHED["vfm_uda"] | {"seed": 0.1, "uncertainty": 0.1, "trucrf": 0.1}


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_step_is_the_published_loss(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = PUBLISHED[method]
    step = step_of(method, monkeypatch)
    names = ["source", "target", *(name for name in ("mix", "masked") if name in weights)]
    passes = dict(zip(names, step.passes, strict=True))
    source, target = batches()
    images, views = passes["source"]
    assert torch.equal(images, source.images)
    wanted = {"source": both(views, source.labels, None)}
    compared = everywhere if "target_feature_distance" in weights else distance
    if "feature_distance" in weights:
        wanted["feature_distance"] = compared(step, images, views)
    images, views = passes["target"]
    assert torch.equal(images, target.images)
    if "target_feature_distance" in weights:
        wanted["target_feature_distance"] = everywhere(step, images, views)
    if method in SEEDS:
        wanted |= target_losses(step, views)
    if "mix" in weights:
        wanted["mix"] = mixing(step, *passes["mix"])
    if "masked" in weights:
        images, views = passes["masked"]
        fill = step.networks.student.encoder.mean
        painted = (images == fill).all(1)
        assert 0.4 < painted.double().mean() < 0.9
        assert torch.equal(_flat(images, ~painted), _flat(target.images, ~painted))
        wanted["masked"] = both(views, *pseudo(step))
    assert step.report.losses.keys() == wanted.keys() == weights.keys()
    for name, value in wanted.items():
        assert step.report.losses[name].item() == pytest.approx(value, rel=1e-4), name
    total = sum(weight * wanted[name] for name, weight in weights.items())
    assert step.total == pytest.approx(total, rel=1e-4)
