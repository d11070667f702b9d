"""Where the networks compute, and in which precision."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssda.datasets.index import read_index
from ssda.engine import adapting
from ssda.engine.device import pick_precision, place, set_up
from ssda.method.teacher import create_teacher
from ssda.networks.normalisation import kept_statistics
from ssda.networks.segmenter import Segmenter, stochastic_pass
from tests.conftest import SMALL_NETWORK, make_model, make_params

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
    student = place(Segmenter(make_model(SMALL_NETWORK), 3), CPU, make_params().compute)
    for network in (student, create_teacher(student)):
        assert network.encode(torch.rand(2, 3, 64, 64))[-1].dtype == torch.bfloat16


def test_determinism_is_set_and_unset(restored: None) -> None:
    set_up(CPU, make_params({"compute.deterministic": True}).compute)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    set_up(CPU, make_params({"compute.deterministic": False}).compute)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic and torch.backends.cudnn.benchmark


def compiled(network: torch.nn.Module) -> set[str]:
    parts = dict(network.named_modules())
    return {name for name, part in parts.items() if part._compiled_call_impl is not None}


def test_student_teacher_and_frozen_encoder_are_compiled_where_asked(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """What is compiled is made on its first use; here there is none."""
    params = make_params({"compute.compile": True, "images.crop": [64, 32]})
    network = Segmenter(params.model, 19)
    names = list(network.state_dict())
    student = place(network, CPU, params.compute)
    assert compiled(student) == {"encoder", "head"} and list(student.state_dict()) == names
    monkeypatch.setattr(adapting, "use_target_statistics", lambda *_: None)
    networks = adapting.start_networks(student, read_index(folder / "target"), params)
    assert compiled(networks.teacher) == {"encoder", "head"}
    assert networks.imagenet is not None and compiled(networks.imagenet) == {""}
    off = place(Segmenter(params.model, 19), CPU, make_params().compute)
    assert compiled(off) == set()


def test_positions_that_cuda_resamples_in_no_order_are_told() -> None:
    network = Segmenter(make_model({"model.encoder": "vit_tiny_patch16_224"}), 3)
    compute = make_params({"compute.deterministic": True}).compute
    with pytest.raises(ValueError, match=r"compute\.deterministic = True: must be False with"):
        place(network, GPU, compute)
    place(network, CPU, compute)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "mit_b0", "vit_small_patch16_dinov3"])
def test_compiled_networks_say_the_same_without_a_break(encoder: str) -> None:
    torch.manual_seed(0)
    overrides = {"model.encoder": encoder, "model.detail": [64, 32], "images.crop": [128, 64]}
    model = make_model(overrides | {"model.channels": 16, "model.drop_path": 0.2})
    network = Segmenter(model, 5).train()
    images = torch.rand(2, 3, 64, 128)

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        draws = [np.random.default_rng(i) for i in range(2)]
        with kept_statistics(network):
            logits = stochastic_pass(network, images, 1, draws).logits
            logits.square().mean().backward()
        values = [p.grad for p in network.parameters() if p.grad is not None]
        return [logits.detach(), torch.cat([v.flatten() for v in values])]

    plain = gradients()
    network.compile(backend="aot_eager", fullgraph=True)  # raises at a break
    for given, wanted in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
