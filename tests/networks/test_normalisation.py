import torch
from torch import nn

from ssda.networks.normalisation import kept_statistics, reestimate_statistics


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_kept_statistics_normalise_by_the_batch_and_stay() -> None:
    network = small_network().train()
    layer = network[1]
    assert isinstance(layer, nn.BatchNorm2d)
    before = layer.running_mean.clone()
    with kept_statistics(network):
        out = network(torch.rand(4, 3, 8, 8) * 5)
    assert torch.equal(before, layer.running_mean)
    assert out.mean().abs() < 1e-5
    network(torch.rand(4, 3, 8, 8) * 5)
    assert not torch.equal(before, layer.running_mean)


def test_reestimated_statistics_are_the_mean_over_the_batches() -> None:
    network = small_network().eval()
    batches = list(torch.rand(3, 4, 3, 8, 8) * 3)
    weights = network[0].weight.clone()
    reestimate_statistics(network, batches, network)
    layer = network[1]
    assert isinstance(layer, nn.BatchNorm2d)
    outputs = [network[0](batch) for batch in batches]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variance = torch.stack([out.transpose(0, 1).flatten(1).var(1) for out in outputs]).mean(0)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)
    assert layer.momentum == 0.1
    assert not network.training
    assert torch.equal(weights, network[0].weight)


def test_networks_without_batch_normalisation_are_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4))
    reestimate_statistics(network, [], network)
