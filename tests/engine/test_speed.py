"""What is measured while a network trains, and that measuring changes nothing."""

import time
from collections.abc import Iterator

import pytest
import torch

from ssda.engine import speed
from ssda.engine.speed import Cost, Speed, told
from ssda.engine.training import Progress, StepRecord, create_optimiser, train
from ssda.method.learning import Report
from ssda.networks.segmenter import Segmenter
from tests.conftest import SMALL_NETWORK, make_model, make_params

CPU = torch.device("cpu")
CARD = torch.device("cuda")


def steps(
    device: torch.device, clock: list[float], *, loading: float = 0.0, working: float = 0.0
) -> list[StepRecord]:
    """Three steps whose images, and whose work, take so many seconds by a clock."""
    network = Segmenter(make_model(SMALL_NETWORK), 3).to(device).train()
    settings = make_params().pretrain.optimiser

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(3):
            clock[0] += loading
            yield torch.rand(2, 3, 32, 32, device=device)

    def add_gradients(batch: torch.Tensor, step: int) -> Report:
        clock[0] += working
        loss = network(batch).square().mean()
        loss.backward()
        return Report({"square": loss.detach()})

    progress = Progress(create_optimiser(network, settings), 0)
    records: list[StepRecord] = []
    for record in train(
        network, settings, 3, batches(), add_gradients, progress=progress, files=lambda _: []
    ):
        clock[0] += 99.0  # the caller's, which counts for no step
        records.append(record)
    return records


def test_a_step_tells_its_seconds_and_how_long_it_waited_for_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    costs = [record.cost for record in steps(CPU, clock, loading=0.25, working=0.5)]
    assert costs == [Cost(seconds=0.75, waited=0.25)] * 3


@pytest.mark.cuda
def test_the_second_step_on_a_card_counts_its_operations() -> None:
    first, second, third = (record.cost.operations for record in steps(CARD, [0.0]))
    assert first is None and third is None
    assert second is not None and second > 1e6


def test_figures_are_of_the_steps_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_memory", lambda _: 3.0)
    pace = Speed(8, CPU)
    pace.costs += [Cost(9.0, 8.0), Cost(1.0, 0.0)]
    assert pace.news()["seconds_a_step"] == 5.0
    pace.costs += [Cost(2.0, 0.5), Cost(2.0, 0.0)]
    assert pace.news() == {
        "seconds_a_step": 2.0,
        "images_a_second": 4.0,
        "waiting_percent": 12.5,
        "peak_memory_gib": 3.0,
        "of_peak_percent": None,
    }
    assert pace.validated(lambda: {"miou": 1.0}) == {"miou": 1.0}
    pace.validating = 6.0
    summary = pace.summary()  # the first step is left out
    assert summary["seconds_a_step"] == pytest.approx(5 / 3)
    assert summary["validation_percent"] == pytest.approx(100 * 6 / 20)
    assert told(summary) == (
        "1.67 s a step, 4.8 images a second, 10.0 % of it waiting for data, "
        "validation took 30 % of the time, at most 3.00 GiB of memory"
    )


@pytest.mark.parametrize(
    ("name", "share"),
    [("NVIDIA H100 80GB HBM3", 50.0), ("NVIDIA H100 PCIe", 100 * 494.5 / 756), ("Other", None)],
)
def test_operations_are_held_against_the_card_s_peak(
    monkeypatch: pytest.MonkeyPatch, name: str, share: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(speed, "peak_memory", lambda _: 1.0)
    pace = Speed(4, CARD)
    pace.costs += [Cost(1.0, 0.0), Cost(0.1, 0.0, int(49.45e12)), Cost(0.1, 0.0)]
    assert pace.figures(2)["of_peak_percent"] == (None if share is None else pytest.approx(share))
    assert pace.figures(1)["of_peak_percent"] == (None if share is None else pytest.approx(share))


def test_peak_memory_follows_what_is_held() -> None:
    before = speed.peak_memory(CPU)
    assert before is not None
    held = torch.ones(64, 2**20)  # 256 MiB, surely beyond what was held before or counted in it
    after = speed.peak_memory(CPU)
    assert after is not None and after >= max(before, 0.25)
    del held
    assert speed.peak_memory(CPU) == pytest.approx(after, abs=0.01)
