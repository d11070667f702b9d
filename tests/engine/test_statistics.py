"""New statistics of batch normalisation: of which batches they are."""

import copy

import pytest
import torch

from ssda.datasets.index import Index
from ssda.engine.statistics import use_target_statistics
from ssda.networks.normalisation import batch_normalisations
from ssda.networks.segmenter import Segmenter
from ssda.params import Params
from ssda.randomness import generator
from tests.conftest import make_params, unlabelled_index

IMAGES = torch.randint(
    0, 256, (5, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return unlabelled_index(tmp_path_factory.mktemp("images"), IMAGES)


def small_network(params: Params) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(params.model, 19)


@pytest.mark.parametrize(
    ("crop", "batch_size", "at_once", "together"),
    [
        ((96, 64), 4, None, 4),
        ((96, 64), 4, 2, 2),
        ((48, 64), 4, None, 2),
        ((48, 32), 4, None, 1),
        ((48, 32), 2, None, 1),
    ],
)
def test_they_are_of_as_many_pixels_as_a_step_sees(
    index: Index, crop: tuple[int, int], batch_size: int, at_once: int | None, together: int
) -> None:
    """Against layers that keep the mean over such batches themselves."""
    params = make_params(
        {
            "model.channels": 8,
            "images.crop": list(crop),
            "adapt.batch_size": batch_size,
            "adapt.micro_batch_size": at_once,
            "runtime.workers": 0,
        }
    )
    network = small_network(params).eval()
    usual = copy.deepcopy(network).train()
    for layer in batch_normalisations(usual):
        layer.reset_running_stats()
        layer.momentum = None
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda *_: pytest.fail("not as training does"))
    network.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for start in range(0, 5, together):
        images = IMAGES[start : start + together].float() / 255.0
        draws = [
            generator(params.random_state, "statistics", start + i) for i in range(len(images))
        ]
        with torch.no_grad():
            usual.observe(images, usual.draw_masks(1, draws), [])
    use_target_statistics(network, index, params)
    assert max(sizes) == together and sum(sizes) == 5
    for layer, wanted in zip(
        batch_normalisations(network), batch_normalisations(usual), strict=True
    ):
        assert torch.equal(layer.running_mean, wanted.running_mean)  # type: ignore[arg-type]
        assert torch.equal(layer.running_var, wanted.running_var)  # type: ignore[arg-type]
        assert layer.momentum == 0.1 and layer.num_batches_tracked == len(sizes)
    assert not network.training
