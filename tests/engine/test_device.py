"""Where the networks compute, and in which precision."""

from collections.abc import Iterator

import pytest
import torch

from ssda.engine.device import pick_precision, place, set_up
from ssda.method.teacher import create_teacher
from ssda.networks.segmenter import Segmenter
from tests.conftest import make_model, make_params

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Old")


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's settings and the environment are afterwards as they were."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with torch.backends.cudnn.flags():
        yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize(
    ("name", "device", "has_it", "precision"),
    [
        ("auto", GPU, True, torch.bfloat16),
        ("bf16", GPU, True, torch.bfloat16),
        ("fp32", GPU, True, torch.float32),
        ("auto", GPU, False, torch.float32),
        ("fp32", GPU, False, torch.float32),
        ("auto", CPU, False, torch.float32),
        ("fp32", CPU, False, torch.float32),
    ],
)
def test_precision_is_what_the_device_has(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    device: torch.device,
    has_it: bool,
    precision: torch.dtype,
) -> None:
    def supported(including_emulation: bool) -> bool:
        return has_it or including_emulation  # a card may emulate what it does not have

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert pick_precision(name, device) == precision


@pytest.mark.parametrize(("device", "place"), [(GPU, "NVIDIA Old"), (CPU, "the CPU")])
def test_bf16_where_it_is_not_there_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, card: None, device: torch.device, place: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    compute = make_params({"compute.precision": "bf16"}).compute
    message = rf"compute\.precision = 'bf16': {place} does not have it; allowed are auto and fp32"
    with pytest.raises(ValueError, match=message):
        set_up(device, compute)


def test_a_network_and_its_teacher_compute_in_the_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ssda.engine.device.pick_precision", lambda *_: torch.bfloat16)
    student = place(Segmenter(make_model({"model.channels": 8}), 3), CPU, make_params().compute)
    for network in (student, create_teacher(student)):
        assert network.encode(torch.rand(2, 3, 64, 64))[-1].dtype == torch.bfloat16


def test_determinism_is_set_and_unset(restored: None) -> None:
    set_up(CPU, make_params({"compute.deterministic": True}).compute)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    set_up(CPU, make_params({"compute.deterministic": False}).compute)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic and torch.backends.cudnn.benchmark
