import torch
from torch import Tensor, nn

from ssda.engine.flops import FlopCounter


def counted(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Operations of a forward and a backward pass whose input needs a gradient."""
    images = torch.rand(shape, requires_grad=True)
    with FlopCounter() as counter:
        network(images).sum().backward()
    return counter.total


def test_convolutions_are_counted_with_their_groups_forward_and_backward() -> None:
    places = 2 * 6 * 5
    plain = nn.Conv2d(4, 8, 3, padding=1)
    assert counted(plain, (2, 4, 6, 5)) == 3 * 2 * places * 8 * 4 * 9
    depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
    assert counted(depthwise, (2, 8, 6, 5)) == 3 * 2 * places * 8 * 9
    transposed = nn.ConvTranspose2d(4, 3, 2, 2)
    assert counted(transposed, (2, 4, 6, 5)) == 3 * 2 * places * 4 * 3 * 4


def test_products_are_counted_and_a_frozen_layer_has_no_gradient_to_compute() -> None:
    product = 2 * 7 * 5 * 3
    assert counted(nn.Linear(5, 3), (7, 5)) == 3 * product
    assert counted(nn.Linear(5, 3).requires_grad_(False), (7, 5)) == 2 * product
    with FlopCounter() as counter:
        torch.bmm(torch.rand(2, 7, 5), torch.rand(2, 5, 3))
    assert counter.total == 2 * product


def test_counting_changes_no_bit_and_compiled_code_is_compiled_afterwards() -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), torch.rand(1, 3, 8, 8)
    wanted = network(images)
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        compiled.append(graph)
        return graph.forward

    run = torch.compile(network.forward, backend=backend)
    with FlopCounter() as counter:
        assert torch.equal(run(images), wanted)
    assert counter.total == 2 * 6 * 6 * 4 * 3 * 9 and not compiled
    assert torch.equal(run(images), wanted) and len(compiled) == 1
