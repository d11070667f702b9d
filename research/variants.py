"""What the ablation compares: variants of the method, in settings of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from research.controls import Balance

Changes = Mapping[str, Any]
"""Dotted keys of params.yaml and their values."""
EVERY_PIXEL = 1e4
"""A beta by which every pseudo label is kept, whatever its class."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        says: what it is, for the table.
        changes: of params.yaml. Those of the sections `EARLY` hold for pretraining too; all
            others for what comes after it alone, so that most variants share one pretrained net.
        training: after pretraining: nothing; new statistics of batch normalisation ("AdaBN");
            adaptation; or as many steps on *labelled* target images. Or, instead of both, from
            the ImageNet encoder for as many steps as both have: on the source, or on labelled
            target images (the oracle).
        balance: how seeds are chosen among the classes.
        overlay: of presets/, over which the changes lie.
    """

    says: str
    changes: Changes = field(default_factory=dict[str, Any])
    training: Literal["none", "statistics", "adapt", "then_labelled", "source", "labelled"] = (
        "adapt"
    )
    balance: Balance = "method"
    overlay: str | None = None


PAPER_RATIOS: Changes = {"adapt.seeds.correction": 0.0}
SETTINGS: dict[str, Changes] = {
    "default": {},
    # 0.35 of the default's time for adaptation.
    "short": {"adapt.iterations": 150, "images.crop": [192, 96]},
    # As many steps on crops that two resolutions can halve.
    "medium": {"adapt.iterations": 150, "images.crop": [192, 128]},
}

NO_TARGET_LOSS: Changes = PAPER_RATIOS | {"adapt.losses.target": 0.0}  # so no seeds either
CLASS_MIXING: Changes = NO_TARGET_LOSS | {
    "adapt.losses.feature_distance": 0.0,
    "sampling.rare_class_temperature": None,
}
WIDE: Changes = {"adapt.trucrf.radius": 5, "adapt.seeds.max_uncertainty": None}
"""As in params.yaml, where a preset says otherwise."""
ANCHOR_SOURCE: Changes = WIDE | {"adapt.seeds.anchor": "source"}
ANCHOR_START: Changes = WIDE | {"adapt.seeds.anchor": "start"}
CERTAIN_SEEDS: Changes = ANCHOR_START | {"adapt.seeds.max_uncertainty": 0.3}
RELIABLE: Changes = CERTAIN_SEEDS | {"adapt.trucrf.radius": 3}
SOURCE_AUGMENTATION: Changes = ANCHOR_SOURCE | {
    "adapt.colour_transfer": 0.0,
    "source_augmentation.jitter_strength": 0.4,
    "source_augmentation.jitter_probability": 0.8,
    "source_augmentation.blur_probability": 0.5,
}
AS_DRAWN: Changes = ANCHOR_SOURCE | {
    "adapt.colour_transfer": 0.0,
    "source_augmentation.jitter_strength": 0.2,
    "source_augmentation.jitter_probability": 0.0,
    "source_augmentation.blur_probability": 0.0,
}
MIRRORED: Changes = {"adapt.pseudo_labels.mirrored": True}
TWICE_THE_RATE: Changes = {"adapt.optimiser.learning_rate": 2.4e-3}
A_THIRD_OF_THE_RATE: Changes = {"adapt.optimiser.learning_rate": 4e-4}
STATISTICS = {
    "": "confidence",
    "_predictive_entropy": "predictive_entropy",
    "_mutual_information": "mutual_information",
}
COLOURS: Changes = {"adapt.colour_transfer": 0.5}
SEEDS_ALONE: Changes = {"adapt.losses.uncertainty": 0.0, "adapt.losses.trucrf": 0.0}

VARIANTS: dict[str, Variant] = {
    "source_only": Variant("source only, as pretrained", training="none"),
    "reestimated": Variant("new statistics on the target, no training", training="statistics"),
    "full": Variant("full: params.yaml"),
    # Class mixing and what is added to it, one by one.
    "mixing": Variant("class mixing, weight q", CLASS_MIXING),
    "mixing_pixel": Variant(
        "class mixing, threshold a pixel",
        CLASS_MIXING | {"adapt.pseudo_labels.weighting": "pixel"},
    ),
    "mixing_rare": Variant(
        "class mixing, weight q, rare class sampling",
        NO_TARGET_LOSS | {"adapt.losses.feature_distance": 0.0},
    ),
    "without_target": Variant("full without the target losses (w_t = 0)", NO_TARGET_LOSS),
    # Full without one of its parts.
    "without_seed": Variant("full without seed loss", {"adapt.losses.seed": 0.0}),
    "without_trucrf": Variant("full without TruCRF", {"adapt.losses.trucrf": 0.0}),
    "without_uncertainty": Variant(
        "full without uncertainty loss", {"adapt.losses.uncertainty": 0.0}
    ),
    "without_balance": Variant(
        "full, every pixel a seed (so TruCRF rests)",
        PAPER_RATIOS | {"adapt.seeds.beta": EVERY_PIXEL},
    ),
    "paper_ratios": Variant("full, ratios r_c as in the paper, not corrected", PAPER_RATIOS),
    "same_share": Variant(
        "full, as many seeds, the same share of each class", PAPER_RATIOS, balance="same"
    ),
    "most_certain": Variant(
        "full, as many seeds, the most certain of any class", PAPER_RATIOS, balance="none"
    ),
    **{
        f"correction_{name}": Variant(
            f"full, correction {power}", {"adapt.seeds.correction": power}
        )
        for name, power in {"1": 1.0, "3": 3.0}.items()
    },
    # How seeds are ranked, how much the target losses weigh, how pseudo labels count.
    "mutual_information": Variant(
        "full, ranked by mutual information", {"adapt.uncertainty.statistic": "mutual_information"}
    ),
    "predictive_entropy": Variant(
        "full, ranked by predictive entropy", {"adapt.uncertainty.statistic": "predictive_entropy"}
    ),
    "weighting_pixel": Variant(
        "full, threshold a pixel", {"adapt.pseudo_labels.weighting": "pixel"}
    ),
    "target_3": Variant("full, w_t = 3", {"adapt.losses.target": 3.0}),
    "target_01": Variant("full, w_t = 0.1", {"adapt.losses.target": 0.1}),
    "target_001": Variant("full, w_t = 0.01", {"adapt.losses.target": 0.01}),
    "threshold_90": Variant(
        "full, certain from a confidence of 0.9", {"adapt.pseudo_labels.confidence_threshold": 0.9}
    ),
    "confident_pixels": Variant(
        "full, seeds: confidence >= 0.968, no balance",
        PAPER_RATIOS | {"adapt.seeds.beta": EVERY_PIXEL, "adapt.seeds.max_uncertainty": 0.032},
    ),
    # Parts of class mixing and the seeds alone.
    "without_rare": Variant(
        "full, source images drawn evenly", {"sampling.rare_class_temperature": None}
    ),
    "without_distance": Variant(
        "full without feature distance", {"adapt.losses.feature_distance": 0.0}
    ),
    **{
        f"seeds{suffix}": Variant(
            f"mixing and seeds alone, by {statistic.replace('_', ' ')}",
            SEEDS_ALONE | {"adapt.uncertainty.statistic": statistic},
        )
        for suffix, statistic in STATISTICS.items()
    },
    **{
        f"seeds_most_certain{suffix}": Variant(
            f"mixing and seeds alone, no balance, by {statistic.replace('_', ' ')}",
            SEEDS_ALONE | {"adapt.uncertainty.statistic": statistic},
            balance="none",
        )
        for suffix, statistic in STATISTICS.items()
    },
    "seed_3": Variant("full, w_seed = 3", {"adapt.losses.seed": 3.0}),
    "seed_10": Variant("full, w_seed = 10", {"adapt.losses.seed": 10.0}),
    "rate_4": Variant("full, learning rate 0.0004", A_THIRD_OF_THE_RATE),
    "mixing_rate_4": Variant(
        "class mixing, weight q, learning rate 0.0004", CLASS_MIXING | A_THIRD_OF_THE_RATE
    ),
    "rate_24": Variant("full, learning rate 0.0024", TWICE_THE_RATE),
    "mixing_rate_24": Variant(
        "class mixing, weight q, learning rate 0.0024", CLASS_MIXING | TWICE_THE_RATE
    ),
    # Beyond the paper.
    "anchor_start": Variant("full, corrected towards the shares at the start", ANCHOR_START),
    "certain_seeds": Variant("anchor_start, seeds of a confidence of 0.7", CERTAIN_SEEDS),
    "reliable": Variant("anchor_start, seeds of a confidence of 0.7, radius 3", RELIABLE),
    "anchor_start_1": Variant(
        "full, towards the shares at the start, correction 1",
        ANCHOR_START | {"adapt.seeds.correction": 1.0},
    ),
    "mirrored": Variant("full, mirrored teacher", MIRRORED),
    "mixing_mirrored": Variant("class mixing, mirrored teacher", CLASS_MIXING | MIRRORED),
    "colours": Variant("full, colours of the target for half of the source", COLOURS),
    "mixing_colours": Variant(
        "class mixing, colours of the target for half of the source", CLASS_MIXING | COLOURS
    ),
    "masked": Variant("full and masked images (MIC)", {"adapt.losses.masked": 1.0}),
    "weighting_seeds": Variant(
        "full, mixed images count on seeds alone", {"adapt.pseudo_labels.weighting": "seeds"}
    ),
    # Numbers.
    "beta_05": Variant("full, beta = 0.05", {"adapt.seeds.beta": 0.05}),
    "beta_20": Variant("full, beta = 0.2", {"adapt.seeds.beta": 0.2}),
    "radius_1": Variant("full, radius 1", WIDE | {"adapt.trucrf.radius": 1}),
    "radius_2": Variant("full, radius 2", WIDE | {"adapt.trucrf.radius": 2}),
    "radius_3": Variant("full, radius 3", WIDE | {"adapt.trucrf.radius": 3}),
    "radius_7": Variant("full, radius 7", WIDE | {"adapt.trucrf.radius": 7}),
    "trucrf_03": Variant("full, w_crf = 0.03", WIDE | {"adapt.losses.trucrf": 0.03}),
    "sigma_rgb_03": Variant("full, sigma_rgb = 0.03", WIDE | {"adapt.trucrf.sigma_rgb": 0.03}),
    "sigma_rgb_30": Variant("full, sigma_rgb = 0.3", WIDE | {"adapt.trucrf.sigma_rgb": 0.3}),
    "quick_teacher": Variant("full, teacher's momentum 0.95", {"adapt.teacher_momentum": 0.95}),
    "strong_jitter": Variant(
        "full, jitter of strength 0.4", {"adapt.augmentation.jitter_strength": 0.4}
    ),
    # As many steps in all as params.yaml.
    "short_pretraining": Variant(
        "full, 300 steps of pretraining, 450 of adaptation",
        {"pretrain.iterations": 300, "adapt.iterations": 450},
    ),
    "passes_2": Variant("full, K = 2", {"adapt.uncertainty.passes": 2}),
    "passes_8": Variant("full, K = 8", {"adapt.uncertainty.passes": 8}),
    "released": Variant(
        "full, the paper's weights, ratios and ranking",
        PAPER_RATIOS
        | {
            "adapt.uncertainty.statistic": "mutual_information",
            "adapt.losses.target": 0.01,
            "adapt.losses.trucrf": 0.1,
            "adapt.jitter_target": False,
        },
    ),
    "labels_instead": Variant(
        "as pretrained, then as many steps on labelled target images as adaptation has",
        training="then_labelled",
    ),
    # The ends of the gap, with as many steps as pretraining and adaptation have together.
    "source_longer": Variant("source only, as many steps", training="source"),
    "oracle": Variant("oracle: as many steps on labelled target images", training="labelled"),
}
SOURCE_IMAGES: dict[str, tuple[str, Changes, tuple[str, ...]]] = {
    "plain": ("source images as they are", AS_DRAWN, ("reestimated", "mixing", "full")),
    "augmented": (
        "augmented source images",
        SOURCE_AUGMENTATION,
        (
            *("source_only", "reestimated", "mixing", "full", "mirrored", "masked"),
            *("paper_ratios", "rate_4", "mixing_rate_4", "anchor_start", "without_trucrf"),
            *("colours", "mixing_colours"),
        ),
    ),
}
"""What may be done to source images, and the variants that are there with it as well."""
VARIANTS.update(
    {
        prefix if name == "full" else f"{prefix}_{name}": replace(
            VARIANTS[name],
            says=f"{VARIANTS[name].says}; {says}",
            changes={**changes, **VARIANTS[name].changes},
        )
        for prefix, (says, changes, names) in SOURCE_IMAGES.items()
        for name in names
    }
)

BASELINES: dict[str, Variant] = {
    "method/source_only": Variant(
        "source only, as many steps",
        {"sampling.rare_class_temperature": None},
        training="source",
    ),
    **{
        overlay: Variant(says, overlay=overlay)
        for overlay, says in {
            "method/adabn": "the same, then new statistics on the target (AdaBN)",
            "method/dacs": "class mixing (DACS)",
            "method/daformer": "and rare classes, feature distance (DAFormer)",
            "method/hrda": "and two resolutions (HRDA)",
            "method/mic": "and masked images (MIC)",
            "method/released": "SSDA, the release's weights, two resolutions",
            "method/corrected_ratios": "ours: SSDA, corrected ratios, one resolution",
        }.items()
    },
}
"""The methods that ours stands on, as presets/method has them."""
EVERY = VARIANTS | BASELINES
