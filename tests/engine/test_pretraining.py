from pathlib import Path
from typing import Any

import pytest
import torch

from ssda.datasets.index import read_index
from ssda.engine.pretraining import imagenet_network, pretrain_steps
from ssda.networks.normalisation import batch_normalisations
from tests.conftest import make_params


def test_computing_activations_twice_changes_nothing(folder: Path, small: dict[str, Any]) -> None:
    """Weights and running statistics: these take in every batch once."""
    source = read_index(folder / "source")
    found: list[dict[str, torch.Tensor]] = []
    for checkpointing in (False, True):
        params = make_params(small | {"model.checkpointing": checkpointing})
        network = imagenet_network(params, 19)
        for record in pretrain_steps(network, [source], params):
            assert record.problem is None
        found.append(network.state_dict())
    plain, twice = found
    for name, values in plain.items():
        if values.is_floating_point():
            torch.testing.assert_close(twice[name], values, rtol=1e-4, atol=1e-5, msg=name)


def test_micro_batches_give_the_gradient_of_the_whole_batch(
    folder: Path, small: dict[str, Any]
) -> None:
    """Batch normalisation is frozen: it normalises each micro-batch by itself."""
    source = read_index(folder / "source")
    found: list[list[torch.Tensor]] = []
    for at_once in (None, 3):
        params = make_params(small | {"pretrain.micro_batch_size": at_once})
        network = imagenet_network(params, 19)
        sizes: list[int] = []
        network.encoder.register_forward_pre_hook(
            lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
        steps = pretrain_steps(network, [source], params)
        network.train = lambda *_, of=network: of  # type: ignore[method-assign]
        for layer in batch_normalisations(network):
            layer.eval()
        record = next(steps)
        assert sizes == ([4] if at_once is None else [3, 1])
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        found.append([record.report.losses["source"], *gradients])
    scale = max(float(values.abs().max()) for values in found[0])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6 * scale)


def test_crops_that_patches_do_not_fill_are_told_before_training() -> None:
    overrides = {"model.encoder": "vit_tiny_patch16_224", "images.crop": [64, 40]}
    with pytest.raises(ValueError, match=r"images\.crop = \[64, 40\]: sides must be multiples of"):
        imagenet_network(make_params(overrides), 3)


def test_source_images_are_augmented_where_it_is_asked_for(
    folder: Path, small: dict[str, Any]
) -> None:
    source = read_index(folder / "source")
    losses: list[float] = []
    for probability in (0.0, 1.0):
        params = make_params(small | {"source_augmentation.jitter_probability": probability})
        record = next(pretrain_steps(imagenet_network(params, 19), [source], params))
        losses.append(float(record.report.losses["source"]))
    assert losses[0] != losses[1]
