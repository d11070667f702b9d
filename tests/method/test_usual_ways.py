"""The benchmarks compare like with like: the usual way gives the same loss and gradient."""

import pytest
import torch

from benchmarks.usual import unfolded_crf_loss
from ssda.method.trucrf import truncated_crf_loss


def test_unfolding_gives_the_same_loss_and_gradient() -> None:
    torch.manual_seed(0)
    p = torch.randn(2, 5, 9, 12).softmax(1).requires_grad_()
    image, seeds = torch.rand(2, 3, 9, 12), torch.rand(2, 9, 12) < 0.4
    losses = [
        way(p, image, seeds, radius=3, sigma_xy=2.0, sigma_rgb=0.3)
        for way in (truncated_crf_loss, unfolded_crf_loss)
    ]
    gradients = [torch.autograd.grad(loss, p)[0] for loss in losses]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1])
