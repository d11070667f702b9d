"""What machine it is, and its ceilings."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.results import guarded, put
from benchmarks.gpu.shared import DEVICE, ON_CARD, SMALL, milliseconds


def names() -> None:
    """Card, cores, versions."""
    if ON_CARD:
        card = torch.cuda.get_device_properties(0)
        note = f"{card.total_memory / 2**30:.0f} GiB, {card.multi_processor_count} multiprocessors"
        put("card", card.name, "", note)
    else:
        put("card", "none", "", "a rehearsal on the CPU" if SMALL else "no CUDA device here")
    put("cores", float(os.cpu_count() or 0))
    put(
        "PyTorch",
        torch.__version__,
        "",
        f"CUDA {torch.version.cuda}, Python {platform.python_version()}",
    )
    missing: list[str] = []
    found: list[str] = []
    for name in ("triton", "timm", "torchvision", "dvc", "mlflow"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    put("packages", ", ".join(found), "", f"not here: {', '.join(missing) or 'none'}")


def product(kind: torch.dtype) -> None:
    """A large product of matrices."""
    side = 128 if SMALL else 8192
    a, b = (torch.randn(side, side, device=DEVICE).to(kind) for _ in range(2))
    rate = 2 * side**3 / milliseconds(lambda: a @ b, 10) / 1e9
    put(f"product of {side} x {side}, {kind}".replace("torch.", ""), rate, "TFLOP/s")


def copying() -> None:
    """On the card, and to it."""
    size = 2**20 if SMALL else 2**30
    a = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    put("copy on the card", 2 * size / milliseconds(lambda: b.copy_(a), 10) / 1e9, "TB/s")
    images = torch.zeros(2, 3, 1024, 1024, dtype=torch.uint8)
    put("images of a step to the card", milliseconds(lambda: images.to(DEVICE)), "ms", "pageable")
    if ON_CARD:
        pinned = images.pin_memory()
        taken = milliseconds(lambda: pinned.to(DEVICE, non_blocking=True))
        put("images of a step to the card, pinned", taken, "ms")


def launches() -> None:
    """What starting an operation costs."""
    one, count = torch.zeros(1, device=DEVICE), 1000

    def many() -> None:
        for _ in range(count):
            one.add_(1)

    put("an operation on one number", 1e3 * milliseconds(many, 5) / count, "us")


def main() -> None:
    """All of it."""
    guarded("names", names)
    for kind in (torch.bfloat16, torch.float32):
        guarded(f"product, {kind}", product, kind)
    guarded("copying", copying)
    guarded("launches", launches)


if __name__ == "__main__":
    main()
