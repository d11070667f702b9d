"""Typed parameters: what params.yaml may say. The file itself is the only place with defaults.

What is said here of each key is also its comment in params.yaml, and its line in
docs/parameters.md: `python -m pipeline.parameters` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ssda.labels import load_space
from ssda.sections import Section, read_yaml, validate

# Upper bounds are generous: beyond them a stage would overflow, never end or fill any memory.
Steps = Annotated[int, Field(ge=0, le=10_000_000)]
PositiveSteps = Annotated[int, Field(ge=1, le=10_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=1024)]
Passes = Annotated[int, Field(ge=2, le=256)]
Pixels = Annotated[int, Field(ge=0, le=1_000_000_000)]
Rim = Annotated[int, Field(ge=0, le=16384)]
Side = Annotated[int, Field(ge=1, le=16384)]
Size = tuple[Side, Side]
Width = Annotated[int, Field(ge=1, le=2048)]
Radius = Annotated[int, Field(ge=1, le=64)]
Workers = Annotated[int, Field(ge=0, le=256)]
Pictures = Annotated[int, Field(ge=1, le=64)]  # matplotlib draws no more than 2^16 rows of pixels
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(ge=1e-12, le=10)]
Factor = Annotated[float, Field(ge=1e-4, le=10_000)]
Weight = Annotated[float, Field(ge=0, le=10_000)]
Exponent = Annotated[float, Field(ge=0, le=10)]
Bandwidth = Annotated[float, Field(ge=1e-3, le=10_000)]
BlurSigma = Annotated[float, Field(ge=0.01, le=100)]
Text = Annotated[str, Field(max_length=1000, pattern=r"^[^[:cntrl:]]+$")]
ModelName = Annotated[str, Field(max_length=250, pattern=r"^[^[:cntrl:]/:]+$")]
SourceName = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9_-]+$")]  # of a folder, too


class Source(Section):
    """A labelled raw set."""

    layout: Text
    """How the raw set is laid out: gta, synthia, cityscapes or the path of a layout YAML."""
    root: Text
    """Folder of the raw set."""
    split: Text
    """Split of the raw set; gta and synthia have one, train."""
    resize: Size | None
    """Resize images to this [width, height] first; null: as they are."""
    marker: Text
    """Any file below root; DVC joins the stage that makes it, if there is one."""


class Target(Section):
    """Images to adapt to."""

    layout: Text
    """How the raw set is laid out: gta, synthia, cityscapes or the path of a layout YAML."""
    root: Text
    """Folder of the raw set."""
    train: Text
    """Split that is adapted to; its labels are never opened."""
    validation: Text
    """Labelled split for the validation curve."""
    report: Text
    """Labelled split for the reported figures."""
    marker: Text | None
    """A file below root that another DVC stage makes, as sources have one; null: none."""


class Images(Section):
    """Sizes, [width, height] in pixels."""

    target_size: Size | None
    """Resize target images to this first; null: as they are."""
    crop: Size
    """Training crops."""


class Sampling(Section):
    """How source images and crops are drawn."""

    max_class_share: PositiveShare
    """A crop is drawn again, 10 times at most, while one class fills more than this share."""
    rare_class_temperature: Factor | None
    """Temperature of rare class sampling, small for rarer classes; null: images drawn evenly."""
    min_pixels: Pixels
    """An image counts as showing a class from this many of its pixels."""
    min_crop_ratio: Weight
    """A crop must hold min_pixels times this of the class drawn."""


class Model(Section):
    """The network."""

    encoder: Text
    """Name of a timm encoder, or mit_b0 to mit_b5; hf-hub:OWNER/NAME and local-dir:FOLDER have timm
    look there for its architecture and weights."""
    weights: Text | None
    """File with the encoder's weights; null: its pretrained weights."""
    head: Literal["daformer", "deeplabv2"]
    """Decode head; deeplabv2 dilates the encoder to stride 8."""
    pyramid: Literal["blocks", "last"]
    """What DAFormer's head sees of a plain vision transformer at strides 4, 8, 16 and 32: blocks:
    the maps of four of its blocks, a quarter of them apart; last: the last map alone (ViTDet)."""
    channels: Width
    """Width of DAFormer's head; DeepLabV2 has none."""
    dropout: ShareBelowOne
    """Share of the head's channels dropped before the classifier."""
    drop_path: ShareBelowOne
    """Stochastic depth of the encoder while it trains; for transformers."""
    detail: Size | None
    """Size of the detail crops of two resolutions (HRDA), half of images.crop, or the word half;
    null: one resolution."""
    checkpointing: bool
    """Compute activations of the encoder twice instead of keeping them: less memory, more time."""


class Optimiser(Section):
    """AdamW with linear warm-up and linear decay."""

    learning_rate: LearningRate
    """Learning rate of the encoder."""
    head_factor: Factor
    """The head's learning rate is this many times the encoder's."""
    weight_decay: Exponent
    """Decoupled weight decay."""
    layer_decay: PositiveShare
    """Learning rate of a transformer's block over that of the next."""
    warmup: Steps
    """Steps of linear warm-up; then linear decay to 0."""


class Compute(Section):
    """How numbers are computed; what is here may change results."""

    precision: Literal["auto", "bf16", "fp32"]
    """Precision of the student's passes and of evaluation on a GPU; auto: bf16 where the card has
    it, else fp32; a CPU computes in fp32. Labels and losses are fp32 always."""
    deterministic: bool
    """Equal bits from run to run, and over kill and resume, on a GPU too; a CPU has them anyway."""
    compile: bool
    """Compile encoder and head (torch.compile): minutes at the start, faster steps on a GPU."""


class Pretrain(Section):
    """Training on the source alone."""

    iterations: Steps
    """Optimiser steps; 0: adaptation starts from the ImageNet encoder."""
    batch_size: BatchSize
    """Source images a step, over all processes."""
    micro_batch_size: BatchSize | None
    """Images that a process sees at once: less memory, gradients are summed over the batch
    (gradient accumulation); null: all of its share."""
    validate_every: Steps
    """Steps between points of the validation curve; 0: none."""
    optimiser: Optimiser


class Margins(Section):
    """Rims of a (resized) target image whose pseudo labels never count, in pixels."""

    top: Rim
    """Rows at the top."""
    bottom: Rim
    """Rows at the bottom (the own car's bonnet)."""
    left: Rim
    """Columns at the left."""
    right: Rim
    """Columns at the right."""


class Uncertainty(Section):
    """What ranks pixels (StaIA): the Bayesian uncertainty of an ensemble of stochastic passes."""

    statistic: Literal["mutual_information", "predictive_entropy", "confidence"]
    """What ranks the pixels."""
    passes: Passes
    """Monte-Carlo head passes of the teacher."""
    student_passes: Passes
    """Head passes of the uncertainty loss."""
    members: Literal["dropout", "resolutions", "both"]
    """What the ensemble is made of: dropout passes; fused, context and detail logits; or both."""


class PseudoLabelling(Section):
    """The teacher's pseudo labels, and how much they count."""

    confidence_threshold: Share
    """Pseudo labels with at least this confidence count as certain."""
    weighting: Literal["share", "pixel", "seeds"]
    """What a target pixel weighs: q, the share of certain pixels (share); 1 where certain, else 0
    (pixel); or as share, but in mixed images all on the seeds, the mean still q (seeds)."""
    mirrored: bool
    """The teacher looks at the mirror image of a target image as well: its logits are the mean of
    both, its ensemble the members of both."""


class Seeds(Section):
    """Dynamic subdomains (StaIA): the certain, balanced share of each class."""

    beta: Factor
    """Factor of the keep ratios r_c = min(1, beta (1 - ln w_c))."""
    correction: Exponent
    """Exponent g of r_c (w_c / p_c)^g, the ratios corrected by the running share p_c of each class
    among the pseudo labels; 0: not corrected, as in the paper."""
    anchor: Literal["source", "start"]
    """Shares of classes that the correction holds on to: w_c of the source; or those predicted on
    the target by the network that adaptation starts from."""
    max_uncertainty: Weight | None
    """Seeds must not be more uncertain; null: no ceiling."""
    min_pixels: Pixels
    """Classes with no more pixels than this in a batch get no seeds."""


class Losses(Section):
    """Weights of the losses."""

    mix: Weight
    """Cross entropy on the mixed images."""
    masked: Weight
    """Cross entropy on masked target images (MIC); 0: off, MIC takes 1.0."""
    target: Weight
    """Factor w_t of the losses of seeds, uncertainty and truncated CRF."""
    seed: Weight
    """Cross entropy on the seeds."""
    uncertainty: Weight
    """Mutual information of the student's own head passes."""
    trucrf: Weight
    """The truncated CRF: pixels beside seeds of like colour."""
    feature_distance: Weight
    """Distance to the frozen ImageNet features."""


class TruCRF(Section):
    """Structural adaptation (StrIA): the truncated conditional random field."""

    radius: Radius
    """Half width of the window, in pixels of the logits' grid; it is 2 radius + 1 wide."""
    sigma_xy: Bandwidth
    """Spatial bandwidth, in pixels of the logits' grid."""
    sigma_rgb: Bandwidth
    """Colour bandwidth, on colours in [0, 1]."""


class FeatureDistance(Section):
    """Distance to the frozen ImageNet features."""

    cells: Literal["things", "all"]
    """Where and how: things: cells of source images that one thing class fills, by the L2 distance
    (DAFormer); all: all cells of source and of target images, by cosine and smooth L1 behind a
    small network that learns with the student (VFM-UDA++)."""
    min_share: PositiveShare
    """A cell counts as filled where one thing class covers at least this share."""
    stride: Literal[4, 8, 16, 32]
    """Stride of the encoder stage that is compared, in pixels."""


class Masking(Section):
    """Masked image consistency (MIC)."""

    block: Side
    """Side of a masked square, in pixels."""
    ratio: Share
    """Share of squares that are masked."""


class Augmentation(Section):
    """Colour jitter and blur."""

    jitter_strength: Annotated[float, Field(ge=0, le=0.5)]
    """Range of brightness, contrast, saturation and hue."""
    jitter_probability: Share
    """Share of images that are jittered."""
    blur_probability: Share
    """Share of images that are blurred."""
    blur_sigma: tuple[BlurSigma, BlurSigma]
    """Smallest and largest sigma, in pixels."""

    @field_validator("blur_sigma")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("must be [smallest, largest]")
        return value


class Adapt(Section):
    """Joint adaptation."""

    start: Text | None
    """File of the network that it starts from, such as one by pipeline.import_network; null: what
    pretrain leaves."""
    iterations: Steps
    """Optimiser steps; 0: new statistics of batch normalisation alone (AdaBN)."""
    batch_size: BatchSize
    """Images a step and domain, over all processes."""
    micro_batch_size: BatchSize | None
    """Images that a process sees at once: less memory, gradients are summed over the batch
    (gradient accumulation); null: all of its share."""
    validate_every: Steps
    """Steps between points of the validation curve; 0: none."""
    optimiser: Optimiser
    teacher_momentum: ShareBelowOne
    """Largest momentum of the teacher's moving average."""
    margins: Margins
    uncertainty: Uncertainty
    pseudo_labels: PseudoLabelling
    seeds: Seeds
    losses: Losses
    trucrf: TruCRF
    feature_distance: FeatureDistance
    masking: Masking
    augmentation: Augmentation
    """Colour jitter and blur of mixed and of masked images."""
    colour_transfer: Share
    """Share of source images that take mean and spread of a target image's colours, in source and
    mixed images."""
    jitter_target: bool
    """Jitter the student's target images as well."""


class Windows(Section):
    """Sliding windows, {extent: [1024, 1024], step: [512, 512]}; null: the image as a whole."""

    extent: Size
    """Size in pixels of a (resized) target image; cut to it where that is smaller."""
    step: Size
    """From window to window; no larger than extent."""

    @model_validator(mode="after")
    def _covers_the_image(self) -> Windows:
        if self.step[0] > self.extent[0] or self.step[1] > self.extent[1]:
            raise ValueError(f"step {list(self.step)} must be no larger than extent")
        return self


def square_windows(sides: Sequence[int] | None, name: str) -> Windows | None:
    """The square windows of an extent and a step; ValueError names what they came in."""
    if sides is None:
        return None
    extent, step = sides
    return validate(Windows, {"extent": [extent] * 2, "step": [step] * 2}, name)


class Evaluate(Section):
    """Scores and pictures; a training stage's validation curve follows it, but is not redrawn."""

    windows: Windows | None
    flip: bool
    """Average with the logits of the mirrored image."""
    passes: Passes
    """Monte-Carlo passes of the uncertainty in the pictures."""
    pictures: Pictures
    """Images in the picture."""
    subsets: tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...]
    """Further mIoUs, over subsets that labels names; cityscapes: 16, 13 (what SYNTHIA shows). The
    first is what the validation curve shows and the gate of pull requests takes; [] for all."""


class Runtime(Section):
    """What changes no result and reruns nothing."""

    device: Literal["auto", "cuda", "cpu"]
    """Where to compute; auto: on a GPU where there is one."""
    workers: Workers
    """Processes that load images; 0: none but the main one."""
    evaluation_batch_size: BatchSize
    """Images a forward pass while evaluating."""
    log_every: PositiveSteps
    """Steps between points of a training curve."""
    save_every: Steps
    """Steps between states from which a killed run goes on; 0: only when it is asked to stop."""
    picture_every: Steps
    """Steps between pictures of adaptation, beside that of the first step; 0: none."""
    progress: bool
    """Show progress bars, where there is a terminal."""
    system_metrics: bool
    """Log the machine's use (GPU, memory, processor) to MLflow while a stage runs."""
    experiment: Text
    """Name of the MLflow experiment."""
    register_as: Annotated[ModelName | None, Field(alias="register")]
    """Name under which MLflow registers the adapted network; null: not."""


class Params(Section):
    """All of params.yaml."""

    random_state: Annotated[int, Field(ge=0, lt=2**63)]
    """Seeds every random draw."""
    labels: Text
    """Classes: cityscapes for its 19, or the path of a label-space YAML with your own."""
    sources: Annotated[dict[SourceName, Source], Field(min_length=1)]
    """Labelled images; several sets, by names of your own, are pooled."""
    target: Target
    images: Images
    sampling: Sampling
    source_augmentation: Augmentation
    """Colour jitter and blur of source images, in pretraining and in adaptation."""
    model: Model
    compute: Compute
    pretrain: Pretrain
    adapt: Adapt
    evaluate: Evaluate
    runtime: Runtime

    @model_validator(mode="before")
    @classmethod
    def _half_is_a_size(cls, values: Any) -> Any:
        match values:
            case {
                "images": {"crop": [int(width), int(height)]},
                "model": {"detail": "half", **model},
            }:
                return values | {"model": model | {"detail": [width // 2, height // 2]}}
            case _:
                return values

    @field_validator("sources")
    @classmethod
    def _are_seen_by_the_run_cache(cls, sources: dict[str, Source]) -> dict[str, Source]:
        """DVC's run cache overlooks keys of these names: it would give another source's result."""
        for name in ("size", "nfiles"):
            if name in sources:
                raise ValueError(f"{name!r} cannot be the name of a source")
        return sources

    @model_validator(mode="after")
    def _passes_differ(self) -> Params:
        uncertainty = self.adapt.uncertainty
        if uncertainty.members != "dropout" and self.model.detail is None:
            raise ValueError(
                f"adapt.uncertainty.members = {uncertainty.members}: must be dropout with one "
                "resolution (model.detail null)"
            )
        by_disagreement = (
            uncertainty.statistic == "mutual_information" and uncertainty.members != "resolutions"
        )
        if self.model.dropout == 0 and (by_disagreement or self.adapt.losses.uncertainty > 0):
            raise ValueError(
                "model.dropout = 0.0: must be above 0 where Monte-Carlo passes are to differ "
                "(statistic mutual_information, losses.uncertainty > 0)"
            )
        return self

    @model_validator(mode="after")
    def _shares_at_the_start_are_known(self) -> Params:
        seeds, untrained = self.adapt.seeds, self.pretrain.iterations == 0
        if seeds.anchor == "start" and seeds.correction > 0 and untrained and not self.adapt.start:
            raise ValueError(
                "adapt.seeds.anchor = start: must be source where adaptation starts from a network "
                "that knows no class (pretrain.iterations 0, adapt.start null)"
            )
        return self

    @model_validator(mode="after")
    def _labels_have_what_is_asked_for(self) -> Params:
        space = load_space(self.labels)
        for name in self.evaluate.subsets:
            if name not in space.subsets:
                allowed = f"the subsets in it ({', '.join(space.subsets) or 'none'})"
                raise ValueError(
                    f"evaluate.subsets = {name}: allowed with labels {self.labels} are {allowed}"
                )
        by_things = self.adapt.feature_distance.cells == "things"
        if self.adapt.losses.feature_distance > 0 and by_things and not space.things:
            raise ValueError(
                f"adapt.losses.feature_distance = {self.adapt.losses.feature_distance}: must be 0 "
                f"where labels {self.labels} name no things, or feature_distance.cells all"
            )
        return self

    @model_validator(mode="after")
    def _blur_fits(self) -> Params:
        crop = self.images.crop
        for key, augmentation in (
            ("source_augmentation", self.source_augmentation),
            ("adapt.augmentation", self.adapt.augmentation),
        ):
            sigmas = augmentation.blur_sigma
            if math.ceil(3 * sigmas[1]) >= min(crop):
                raise ValueError(
                    f"{key}.blur_sigma = {list(sigmas)}: must be at most "
                    f"{(min(crop) - 1) // 3} with images.crop = {list(crop)}"
                )
        return self

    @model_validator(mode="after")
    def _crops_fit(self) -> Params:
        crop = self.images.crop
        sizes = {f"sources.{name}.resize": source.resize for name, source in self.sources.items()}
        for key, size in (sizes | {"images.target_size": self.images.target_size}).items():
            if size is not None and (size[0] < crop[0] or size[1] < crop[1]):
                raise ValueError(f"images.crop = {list(crop)}: larger than {key} = {list(size)}")
        pixels, sampling = crop[0] * crop[1], self.sampling
        wanted = sampling.min_pixels * sampling.min_crop_ratio
        if sampling.rare_class_temperature is not None and wanted >= pixels:
            raise ValueError(
                f"sampling.min_pixels = {sampling.min_pixels}: times min_crop_ratio it must be "
                f"less than the {pixels} pixels of images.crop"
            )
        seeds, pixels = self.adapt.seeds.min_pixels, pixels * self.adapt.batch_size
        if seeds >= pixels:
            raise ValueError(
                f"adapt.seeds.min_pixels = {seeds}: must be less than the {pixels} pixels "
                "of a batch"
            )
        return self

    @model_validator(mode="after")
    def _resolutions_fit(self) -> Params:
        detail, crop = self.model.detail, self.images.crop
        if detail is None:
            return self
        if any(side % 64 for side in crop):
            raise ValueError(
                f"images.crop = {list(crop)}: sides must be multiples of 64 with two resolutions"
            )
        half = [side // 2 for side in crop]
        if list(detail) != half:
            raise ValueError(f"model.detail = {list(detail)}: must be half of images.crop, {half}")
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """The parameters in a file, checked; raises ValueError as `validate` does."""
    return validate(Params, read_yaml(Path(path)), str(path))
