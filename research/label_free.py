"""What can be said of an adapted network without any target label.

To choose between networks (checkpoints, settings) one number is wanted that goes with the score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssda.datasets.index import Index
from ssda.datasets.loading import evaluation_batches
from ssda.engine.evaluation import SCORE_IMAGES, class_shift, evenly_chosen
from ssda.method.uncertainty import entropy, mutual_information
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from ssda.randomness import generators


@torch.inference_mode()
def label_free_indicators(
    network: Segmenter, target: Index, source_frequencies: Tensor, params: Params
) -> dict[str, float]:
    """Indicators over unlabelled target images, on the logits' grid; entropies in bits.

    Args:
        network: in evaluation mode.
        target: the split that was adapted to.
        source_frequencies: (C,), sum to 1.
        params: batch size, threshold, passes.

    Returns:
        certain_share: share of pixels with at least the threshold's confidence.
        confidence: mean of the largest probability.
        entropy: mean entropy of a pixel's prediction.
        mutual_information: mean over K passes with dropout.
        diversity: entropy of the mean prediction.
        information: diversity - entropy.
        flip_agreement: share of pixels whose class is the same in the mirrored image.
        class_shift: Kullback-Leibler divergence of the predicted class shares from the source's.
        label_free_score: information - class_shift, what `ssda.engine.evaluation` gives.
    """
    samples = evenly_chosen(target, SCORE_IMAGES, params)
    settings = params.adapt.uncertainty
    device = network.device
    sums: dict[str, Tensor] = {}
    mean_prediction = torch.zeros(len(source_frequencies), device=device)
    pixels = 0
    batches = evaluation_batches(samples, lambda _: params.adapt.batch_size, params.runtime.workers)
    for number, batch in enumerate(batches):
        images = batch.images.to(device).float() / 255.0
        embedding = network.embed(images)
        probabilities = network.classifier(embedding).softmax(1)
        draws = generators(params.random_state, "label-free", number, len(images))
        members = network.classifier.stochastic(
            embedding, network.draw_masks(settings.passes, draws)
        )
        confidence, labels = probabilities.max(1)
        mirrored = network(images.flip(-1)).argmax(1).flip(-1)
        measured = {
            "certain_share": confidence >= params.adapt.pseudo_labels.confidence_threshold,
            "confidence": confidence,
            "entropy": entropy(probabilities, 1),
            "mutual_information": mutual_information(members.softmax(2)),
            "flip_agreement": labels == mirrored,
        }
        for name, values in measured.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + values.float().sum()
        mean_prediction += probabilities.sum((0, 2, 3))
        pixels += labels.numel()
    means = {name: float(total) / pixels for name, total in sums.items()}
    shares = mean_prediction / pixels
    diversity = float(entropy(shares, 0))
    information = diversity - means["entropy"]
    shift = float(class_shift(shares, source_frequencies.to(shares)))
    return means | {
        "diversity": diversity,
        "information": information,
        "class_shift": shift,
        "label_free_score": information - shift,
    }
