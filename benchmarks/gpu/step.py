"""A joint step of a preset as training runs it: time, memory, share of the peak, waits, kernels."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.results import MEMORY, STEP, WAITS, guarded, put
from benchmarks.gpu.shared import DEVICE, ON_CARD, SMALL, median_step, prepared, preset, steps, wait
from ssda.engine.device import peak_memory
from ssda.engine.speed import peak_rate

WARM, TIMED, KERNELS = (1, 1, 3) if SMALL else (6, 20, 10)


def measure(name: str) -> None:
    """All figures of one preset."""
    setting = prepared(preset(name))
    records = steps(setting)
    started = time.perf_counter()
    next(records)
    wait()
    put("first step", time.perf_counter() - started, "s", "kernels are loaded and compiled")
    warm = [next(records) for _ in range(WARM)]
    if ON_CARD:
        torch.cuda.reset_peak_memory_stats()
    taken = median_step(records, TIMED)
    hours = setting.params.adapt.iterations * taken / 3.6e6
    put(STEP, taken, "ms", f"{setting.params.adapt.iterations} steps: {hours:.1f} h")
    put(MEMORY if ON_CARD else "peak memory of the process", peak_memory(DEVICE) or 0.0, "GiB")
    operations = next((r.cost.operations for r in warm if r.cost.operations), None)
    if operations:
        rate = operations / taken * 1e3
        peak = peak_rate(DEVICE)
        share = f", {100 * rate / peak:.0f} % of the card's bfloat16 peak" if peak else ""
        put("rate", rate / 1e12, "TFLOP/s", f"{operations / 1e12:.1f} TFLOP a step{share}")
    last = next(records)
    losses = " ".join(f"{name}={float(v):.3g}" for name, v in last.report.losses.items())
    put("losses", last.problem or "finite", "", losses)
    if ON_CARD:
        count_waits(lambda: next(records))
    kernels(lambda: next(records), taken)


def count_waits(step: Callable[[], object]) -> None:
    """Calls that wait for the card, by the line that makes them; PyTorch finds most, not all."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    found = [each for each in caught if "called a synchronizing" in str(each.message)]
    places = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in found)
    note = ", ".join(f"{place} {count}" for place, count in places.most_common())
    put(WAITS, float(len(found)), "", note)


def kernels(step: Callable[[], object], taken: float) -> None:
    """How long the card is busy in a step, and with what."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_CARD else [])]
    with profile(activities=activities) as profiled:
        step()
        wait()
    spent: Counter[str] = Counter()
    count = 0
    for event in profiled.events() or ():
        on_card = "CUDA" in str(event.device_type)
        if on_card == ON_CARD:
            time_us = event.device_time if on_card else event.self_cpu_time_total
            spent[event.name] += int(time_us)
            count += 1
    busy = spent.total() / 1e3
    where = "kernels and copies" if ON_CARD else "operations"
    note = f"busy {busy:.1f} ms, {100 * busy / taken:.0f} % of a step"
    put(f"{where} a step", float(count), "", note)
    for name, microseconds in spent.most_common(KERNELS):
        put(f"of these {name[:80]}", microseconds / 1e3, "ms")


if __name__ == "__main__":
    guarded(STEP, measure, sys.argv[1])
