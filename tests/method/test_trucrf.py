import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssda.method.trucrf import by_offsets, truncated_crf_loss


def slow_loss(
    p: torch.Tensor, image: torch.Tensor, m: torch.Tensor, radius: int, s_xy: float, s_rgb: float
) -> torch.Tensor:
    """The formula, pair by pair."""
    count, _, height, width = p.shape
    total = torch.zeros((), dtype=p.dtype)
    for n in range(count):
        for ya in range(height):
            for xa in range(width):
                for yb in range(max(0, ya - radius), min(height, ya + radius + 1)):
                    for xb in range(max(0, xa - radius), min(width, xa + radius + 1)):
                        if (ya, xa) == (yb, xb) or m[n, ya, xa] or not m[n, yb, xb]:
                            continue
                        distance = (ya - yb) ** 2 + (xa - xb) ** 2
                        colour = float((image[n, :, ya, xa] - image[n, :, yb, xb]).square().sum())
                        weight = math.exp(-distance / (2 * s_xy**2) - colour / (2 * s_rgb**2))
                        total = total + weight * (1 - p[n, :, ya, xa] @ p[n, :, yb, xb])
    return total / max(1, int((~m).sum()))


def problem(
    state: int = 0, height: int = 5, width: int = 6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(state)
    logits = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    image = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    return logits.softmax(1), image, torch.rand(2, height, width, generator=generator) < 0.4


@pytest.mark.parametrize("radius", [1, 2, 9])
def test_loss_and_gradient_equal_the_written_out_form(radius: int) -> None:
    p, image, m = problem()
    p = p.requires_grad_()
    expected = slow_loss(p, image, m, radius, 1.5, 0.4)
    (wanted,) = torch.autograd.grad(expected, p)
    loss = truncated_crf_loss(p, image, m, radius=radius, sigma_xy=1.5, sigma_rgb=0.4)
    (gradient,) = torch.autograd.grad(loss, p)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, wanted)
    assert gradient.abs().sum() > 0


def test_gradient_passes_gradcheck() -> None:
    p, image, m = problem(height=3, width=4)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return truncated_crf_loss(values, image, m, radius=2, sigma_xy=1.0, sigma_rgb=0.3)

    assert torch.autograd.gradcheck(loss, p.requires_grad_())


def test_a_non_seed_is_pulled_to_the_seed_of_its_colour() -> None:
    image = torch.zeros(1, 3, 1, 3)
    image[..., 2] = 1.0
    logits = torch.tensor([[[4.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, 4.0]]])
    logits = logits.unsqueeze(0).requires_grad_()
    seeds = torch.tensor([[[True, False, True]]])
    truncated_crf_loss(
        logits.softmax(1), image, seeds, radius=1, sigma_xy=3.0, sigma_rgb=0.1
    ).backward()
    assert logits.grad is not None
    pull = -logits.grad[0, :, 0, 1]
    assert pull[0] > 0 > pull[2]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_seeds_or_without_others_the_loss_is_zero(share: float) -> None:
    p, image, m = problem()
    seeds = torch.full_like(m, bool(share))
    p = p.requires_grad_()
    loss = truncated_crf_loss(p, image, seeds, radius=2, sigma_xy=1.0, sigma_rgb=1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert p.grad is not None and not p.grad.any()


def test_half_precision_is_close_and_keeps_its_type() -> None:
    p, image, m = problem()
    exact = truncated_crf_loss(p, image, m, radius=2, sigma_xy=1.0, sigma_rgb=0.5)
    half = p.bfloat16().requires_grad_()
    loss = truncated_crf_loss(half, image.float(), m, radius=2, sigma_xy=1.0, sigma_rgb=0.5)
    loss.backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_shapes_that_do_not_agree_are_an_error() -> None:
    p, image, m = problem()
    with pytest.raises(ValueError, match="seed mask"):
        truncated_crf_loss(p, image[..., 1:], m, radius=1, sigma_xy=1.0, sigma_rgb=1.0)


def test_threads_change_nothing_in_the_gradient() -> None:
    torch.manual_seed(0)
    p = torch.randn(2, 4, 40, 50).softmax(1).requires_grad_()
    image, seeds = torch.rand(2, 3, 40, 50), torch.rand(2, 40, 50) < 0.4
    gradients: list[torch.Tensor] = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss = truncated_crf_loss(p, image, seeds, radius=3, sigma_xy=2.0, sigma_rgb=0.3)
        gradients += torch.autograd.grad(loss, p)
    torch.set_num_threads(before)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


KERNEL_CHECK = """
import torch
from ssda.method.trucrf import by_offsets
from ssda.method.trucrf_cuda import by_pixels
torch.manual_seed(0)
for (n, c, h, w), radius in (((2, 3, 3, 70), 2), ((1, 5, 4, 2), 5)):
    p, image = torch.randn(n, c, h, w).softmax(1), torch.rand(n, 3, h, w)
    arguments = p, image, torch.rand(n, h, w) < 0.4, radius, 2.0, 0.3
    for ours, plain in zip(by_pixels(*arguments), by_offsets(*arguments), strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(ours, plain)
"""


def test_triton_kernel_equals_the_plain_form() -> None:
    pytest.importorskip("triton")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KERNEL_CHECK], check=True, cwd=root, env=environment)


def test_triton_kernel_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a GPU that need not be there: the interpreter takes more than the compiler does."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ssda.method import trucrf_cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"seeds": "*u8", "height": "i32", "width": "i32"}
    types |= {"by_distance": "fp32", "by_colour": "fp32"}
    constants = {"RADIUS": 5, "CLASSES": 19, "CHANNELS": 32, "TILE": trucrf_cuda.TILE}
    kernel = trucrf_cuda._gather
    signature = {
        n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "ld.global" in compiled.asm["ptx"]


@pytest.mark.cuda
def test_kernel_equals_the_plain_form_on_a_gpu() -> None:
    from ssda.method.trucrf_cuda import by_pixels

    torch.manual_seed(0)
    p = torch.randn(2, 19, 60, 130, device="cuda").softmax(1)
    image, seeds = torch.rand_like(p[:, :3]), torch.rand_like(p[:, 0]) < 0.4
    plain = by_offsets(p, image, seeds, 5, 3.0, 0.1)
    for ours, wanted in zip(by_pixels(p, image, seeds, 5, 3.0, 0.1), plain, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
