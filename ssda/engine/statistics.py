"""New statistics of batch normalisation, of target images ("AdaBN", Li et al., 2017)."""

from __future__ import annotations

from ssda.datasets.batches import EvaluationBatch
from ssda.datasets.index import Index
from ssda.datasets.loading import Size, evaluation_batches
from ssda.engine.evaluation import evenly_chosen
from ssda.networks.normalisation import reestimate_statistics
from ssda.networks.segmenter import Segmenter, stochastic_pass
from ssda.params import Params
from ssda.randomness import generator

STATISTICS_IMAGES = 500
"""How many target images the statistics of batch normalisation are estimated from, at most."""


def use_target_statistics(network: Segmenter, target: Index, params: Params) -> None:
    """Replace the network's running statistics by those of target images.

    They are means over batches of whole images that hold as many pixels as the crops of an
    adaptation step, or of a micro-batch of it, or one image where that has more. Of several
    processes each sees its share of these batches and all get the means over all: how many there
    are changes nothing.
    """
    crops = params.adapt.micro_batch_size or params.adapt.batch_size

    def most(size: Size) -> int:
        width, height = params.images.crop
        return max(1, crops * width * height // (size[0] * size[1]))

    def run(batch: EvaluationBatch) -> None:
        draws = [generator(params.random_state, "statistics", number) for number in batch.numbers]
        images = network.pad(batch.images.to(network.device, non_blocking=True).float() / 255.0)
        stochastic_pass(network, images, 1, draws)

    samples = evenly_chosen(target, STATISTICS_IMAGES, params)
    batches = evaluation_batches(samples, most, params.runtime.workers)
    reestimate_statistics(network, batches, run)
