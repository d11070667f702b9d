import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch

from ssda.method.trucrf import by_offsets, describe_form, missing_for_kernel, truncated_crf_loss

Shape = tuple[int, int, int, int]


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
CASES = [((1, 1, 1, 1), 1), ((1, 3, 3, 1), 2), ((1, 2, 1, 63), 1), ((1, 5, 1, 64), 1)]
CASES += [((1, 4, 2, 65), 1), ((2, 3, 1, 128), 1), ((2, 33, 1, 9), 1), ((1, 150, 1, 4), 1)]
for (n, c, h, w), radius in CASES:
    p, image = torch.randn(n, c, h, w).softmax(1), torch.rand(n, 3, h, w)
    seeds = torch.rand(n, h, w) < 0.4
    seeds[:, 0, 0], seeds[:, -1, -1] = True, False
    layouts = [(p, image, seeds)]
    if w == 65:
        last = (v.contiguous(memory_format=torch.channels_last) for v in (p, image))
        slices = (torch.cat([v, v], -1)[..., 1 : w + 1] for v in (p, image, seeds))
        layouts += [(*last, seeds), tuple(slices)]
    for tensors in layouts:
        arguments = *tensors, radius, 2.0, 0.3
        for ours, plain in zip(by_pixels(*arguments), by_offsets(*arguments), strict=True):
            assert plain.abs().sum() > 0 or h * w == 1
            torch.testing.assert_close(ours, plain)
"""


def test_triton_kernel_equals_the_plain_form() -> None:
    pytest.importorskip("triton")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KERNEL_CHECK], check=True, cwd=root, env=environment)


@dataclass
class Driver:
    """What Triton asks of a GPU to compile for it; there need be none."""

    capability: int

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def compiled_for(
    capability: int, shapes: list[Shape], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """What a launch for each of the shapes compiles, its arguments specialised as on a GPU."""
    from triton.runtime import driver

    from ssda.method.trucrf_cuda import _gather, by_pixels

    kernels: list[Any] = []
    run = type(_gather).run

    def compile_only(*arguments: Any, warmup: bool, **options: Any) -> None:
        kernels.append(run(_gather, *arguments, warmup=True, **options))

    monkeypatch.setattr(driver, "_active", Driver(capability))
    monkeypatch.setattr(_gather, "device_caches", defaultdict(_gather.create_binder))
    monkeypatch.setattr(_gather, "run", compile_only)
    for count, classes, height, width in shapes:
        p = torch.zeros(count, classes, height, width)
        seeds = torch.zeros(count, height, width, dtype=torch.bool)
        by_pixels(p, torch.zeros(count, 3, height, width), seeds, 5, 3.0, 0.1)
    return kernels


def spilled(kernel: Any, folder: Path) -> int:
    """Bytes a thread that do not fit into registers."""
    from triton import knobs

    (folder / "cubin").write_bytes(kernel.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(folder / "cubin")]
    usage = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return sum(int(found) for found in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


@pytest.mark.parametrize("capability", [80, 90])
def test_triton_kernel_compiles_for_gpus_without_spills(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does; Triton specialises 1 and multiples."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shapes: list[Shape] = [(1, 19, 1, 1), (2, 19, 128, 128), (2, 19, 256, 257), (2, 150, 128, 128)]
    kernels = compiled_for(capability, shapes, monkeypatch)
    assert len({kernel.hash for kernel in kernels[:3]}) == 1, "compiled again for each size"
    assert len(kernels) == len(shapes) and "ld.global" in kernels[0].asm["ptx"]
    assert spilled(kernels[0], tmp_path) == spilled(kernels[-1], tmp_path) == 0


@pytest.fixture
def asked_anew() -> Iterator[None]:
    missing_for_kernel.cache_clear()
    yield
    missing_for_kernel.cache_clear()


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "error", "form"),
    [
        ((9, 0), None, "Triton kernel"),
        ((7, 5), None, "slower plain form (Triton takes a GPU of compute capability 8.0"),
        ((9, 0), RuntimeError("Failed to find C compiler.\nSee"), "Failed to find C compiler.)"),
        ((9, 0), CalledProcessError(1, ["gcc"]), "Triton cannot be started: Command '['gcc']'"),
    ],
)
@pytest.mark.usefixtures("asked_anew")
def test_what_the_kernel_lacks_is_said(
    capability: tuple[int, int],
    error: Exception | None,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton = pytest.importorskip("triton")

    def build() -> object:
        if error is not None:
            raise error
        return object()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(triton.runtime, "driver", DriverConfiguration(build))
    assert form in describe_form(CUDA)
    assert describe_form(torch.device("cpu")) == "plain form"


@dataclass
class DriverConfiguration:
    """Triton's, which builds its driver when it is first asked for."""

    build: Callable[[], object]

    @property
    def active(self) -> object:
        return self.build()


@pytest.mark.usefixtures("asked_anew")
def test_without_triton_the_plain_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.runtime", None)
    assert describe_form(CUDA) == "slower plain form (Triton is not installed)"


@pytest.mark.usefixtures("asked_anew")
def test_another_fault_of_the_kernel_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")

    def build() -> object:
        raise TypeError("no such function")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(triton.runtime, "driver", DriverConfiguration(build))
    with pytest.raises(TypeError, match="no such function"):
        missing_for_kernel()


def on_gpu(classes: int, layout: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    p = torch.randn(2, classes, 60, 130, device="cuda").softmax(1)
    image, seeds = torch.rand_like(p[:, :3]), torch.rand_like(p[:, 0]) < 0.4
    if layout == "channels last":
        p, image = (v.contiguous(memory_format=torch.channels_last) for v in (p, image))
    if layout == "slices":
        p, image, seeds = p[..., 1:60], image[..., 1:60], seeds[..., 1:60]
    return p, image, seeds


@pytest.mark.cuda
@pytest.mark.parametrize("classes", [1, 19, 150])
@pytest.mark.parametrize("layout", ["plain", "channels last", "slices"])
def test_kernel_equals_the_plain_form_in_float64_on_a_gpu(classes: int, layout: str) -> None:
    from ssda.method.trucrf_cuda import by_pixels

    p, image, seeds = on_gpu(classes, layout)
    exact = by_offsets(p.double(), image.double(), seeds, 5, 3.0, 0.1)
    for ours, wanted in zip(by_pixels(p, image, seeds, 5, 3.0, 0.1), exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_loss_and_gradient_are_the_kernels_on_a_gpu_and_equal_from_run_to_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ssda.method import trucrf_cuda

    launched: list[int] = []
    by_pixels = trucrf_cuda.by_pixels

    def watched(*arguments: Any) -> Any:
        launched.append(1)
        return by_pixels(*arguments)

    monkeypatch.setattr(trucrf_cuda, "by_pixels", watched)
    p, image, seeds = on_gpu(19, "plain")

    def loss_and_gradient(p: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        p = p.detach().requires_grad_()
        loss = truncated_crf_loss(p, image, seeds, radius=5, sigma_xy=3.0, sigma_rgb=0.1)
        return [loss.detach(), *torch.autograd.grad(loss, p)]

    ours, again = (loss_and_gradient(p, image) for _ in range(2))
    assert len(launched) == 2 and describe_form(CUDA) == "Triton kernel"
    exact = loss_and_gradient(p.double(), image.double())
    assert len(launched) == 2, "the kernel computes in float32 alone"
    for value, same, wanted in zip(ours, again, exact, strict=True):
        assert torch.equal(value, same)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-7)
