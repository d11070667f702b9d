"""How do time and memory grow with pixels, classes, radius, passes, images? Draws docs/growth.png.

The exponent of a quantity is the slope of a line through the logarithms: 1 is linear.

    python -m benchmarks.growth
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.made_up import convert_game, write_game
from benchmarks.measure import Answer, apart, command, interleave, peak_gib
from benchmarks.step import create_setting
from benchmarks.trucrf import gradient, grown_mib, problem
from ssda.engine.evaluation import score
from ssda.engine.metrics import confusion_matrix
from ssda.method.subdomains import select_seeds
from ssda.params import Params, load_params
from ssda.randomness import generators

PICTURE = Path(__file__).resolve().parents[1] / "docs/growth.png"


@dataclass(frozen=True)
class Curve:
    """A quantity at several sizes.

    Attributes:
        what: what was measured.
        over: what grew.
        sizes: how far.
        values: seconds or MiB.
        unit: of the values.
        bar: on the exponent.
    """

    what: str
    over: str
    sizes: Sequence[float]
    values: Sequence[float]
    unit: str
    bar: float | None

    @property
    def exponent(self) -> float:
        """Slope of the logarithms."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.values), 1)[0])

    def answer(self) -> Answer:
        """The exponent against its bar."""
        sizes = [f"{size:g}" for size in self.sizes]
        values = [float(f"{value:.4g}") for value in self.values]
        details = {self.unit: dict(zip(sizes, values, strict=True))}
        question = f"{self.what} over {self.over}"
        return Answer(question, self.exponent, "exponent", self.bar, details=details)


def fastest(
    ways: dict[float, Callable[[], object]], rounds: int
) -> tuple[list[float], list[float]]:
    """Sizes, and the seconds of the fastest run of each."""
    seconds = interleave({str(size): way for size, way in ways.items()}, rounds)
    return list(ways), [values[0] for values in seconds.values()]


def crf_time(over: str, cases: dict[float, tuple[int, int, int]], rounds: int) -> Curve:
    """The truncated CRF; a case is side, classes, radius."""
    ways: dict[float, Callable[[], object]] = {}
    for size, (side, classes, radius) in cases.items():
        inputs = problem((2, classes, side, side))
        ways[size] = lambda inputs=inputs, radius=radius: gradient("ours", inputs, radius)
    return Curve("truncated CRF, time", over, *fastest(ways, rounds), "s", 1.1)


def crf_memory(sides: Sequence[int]) -> Curve:
    """What the truncated CRF needs beyond its inputs, a fresh process a size."""
    grown = [apart(grown_mib, "ours", (2, 19, side, side), 5) for side in sides]
    return Curve("truncated CRF, memory", "pixels", [2 * s * s for s in sides], grown, "MiB", 1.1)


def seeds_time(sides: Sequence[int], rounds: int) -> Curve:
    """The choice of seeds."""
    ways: dict[float, Callable[[], object]] = {}
    ratios = torch.linspace(0.2, 1.0, 19)
    for side in sides:
        labels = torch.randint(0, 19, (2, side, side))
        values = torch.rand(2, 2, side, side)
        ways[2 * side * side] = lambda labels=labels, values=values: select_seeds(
            labels, values[0], values[1], ratios
        )
    return Curve("seeds, time", "pixels", *fastest(ways, rounds), "s", 1.2)


def passes_time(params: Params, counts: Sequence[int], rounds: int) -> Curve:
    """A forward pass of the demo's network with K head passes."""
    setting = create_setting(params)
    network, images = setting.networks.teacher, setting.target.images
    draws = generators(0, "benchmark", 0, len(images))
    ways: dict[float, Callable[[], object]] = {
        passes: torch.inference_mode()(
            lambda passes=passes: network.predict(images, network.draw_masks(passes, draws))
        )
        for passes in counts
    }
    return Curve("forward pass, time", "passes K", *fastest(ways, rounds), "s", 1.0)


def confusion_time(sides: Sequence[int], rounds: int) -> Curve:
    """The confusion matrix."""
    ways: dict[float, Callable[[], object]] = {}
    for side in sides:
        pair = torch.randint(0, 19, (2, side, side), dtype=torch.uint8)
        ways[side * side] = lambda pair=pair: confusion_matrix(pair[0], pair[1], num_classes=19)
    return Curve("confusion matrix, time", "pixels", *fastest(ways, rounds), "s", 1.1)


def convert_time(counts: Sequence[int], rounds: int) -> Curve:
    """Conversion of images of the demo's size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways: dict[float, Callable[[], object]] = {}
        for count in counts:
            root = write_game(folder / f"game{count}", count, (272, 144))
            ways[count] = lambda root=root: convert_game(root, folder / "out")
        return Curve("`convert`, time", "images", *fastest(ways, rounds), "s", 1.1)


def scoring_memory(params: Params, counts: Sequence[int]) -> Curve:
    """The most memory of a process that scores images, a fresh process a size."""
    with tempfile.TemporaryDirectory() as name:
        peaks = [apart(_scoring_peak, Path(name) / str(n), params, n) for n in counts]
    return Curve("scoring, memory of the process", "images", counts, peaks, "MiB", 0.1)


def _scoring_peak(folder: Path, params: Params, count: int) -> float:
    index = convert_game(write_game(folder / "game", count, (256, 128)), folder / "out")
    network = create_setting(params).networks.teacher
    score([network], index, params)
    return 1024 * peak_gib()


def draw(curves: Sequence[Curve]) -> None:
    """All curves, each relative to its first point, with the line of linear growth."""
    columns = 3
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained", dpi=100)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, curve in zip(axes, curves, strict=False):
        start = curve.sizes[0]
        axis.loglog(curve.sizes, curve.values, "o-")
        linear = [curve.values[0] * size / start for size in curve.sizes]
        axis.loglog(curve.sizes, linear, "--", color="grey", linewidth=1, label="linear")
        axis.set_title(f"{curve.what}: exponent {curve.exponent:.2f}", fontsize=10)
        axis.set_xlabel(curve.over)
        axis.set_ylabel(curve.unit)
        axis.minorticks_off()
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    axes[0].legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Software": None})


def answers(rounds: int) -> list[Answer]:
    """All exponents; draws the curves."""
    params = load_params()
    sides = (64, 96, 128, 192, 256)
    pairs = {r: (2 * r + 1) ** 2 - 1 for r in (1, 2, 3, 5, 7)}
    curves = [
        crf_time("pixels", {2 * s * s: (s, 19, 5) for s in sides}, rounds),
        crf_time("classes", {c: (128, c, 5) for c in (5, 10, 19, 38, 76)}, rounds),
        crf_time("pairs of a window", {n: (128, 19, r) for r, n in pairs.items()}, rounds),
        crf_memory((128, 192, 256, 384)),
        seeds_time((128, 256, 512, 1024), rounds),
        passes_time(params, (2, 4, 8, 16), rounds),
        confusion_time((256, 512, 1024, 2048), rounds),
        convert_time((10, 20, 40, 80), rounds),
        scoring_memory(params, (16, 32, 64, 128)),
    ]
    draw(curves)
    return [curve.answer() for curve in curves]


if __name__ == "__main__":
    command("growth", __doc__, answers, rounds=5)
