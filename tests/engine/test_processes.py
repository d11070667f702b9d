"""Two processes on the loopback equal one: the same samples, losses, seeds and gradients."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.launcher.api import LaunchConfig

from pipeline.command import guard
from pipeline.training.launch import launch
from ssda import processes
from ssda.datasets import loading
from ssda.datasets.index import read_index
from ssda.engine.adapting import adapt_steps, start_networks
from ssda.engine.evaluation import label_free_score, score
from ssda.engine.pretraining import imagenet_network
from ssda.engine.statistics import use_target_statistics
from ssda.labels import CITYSCAPES
from ssda.method import adaptation
from ssda.networks.normalisation import batch_normalisations, reestimate_statistics
from ssda.params import Params
from ssda.processes import joined
from ssda.sections import changed
from tests.conftest import ROOT, make_params

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])


def step_params() -> Params:
    return make_params(
        {
            "images.crop": [64, 32],
            "sampling.min_pixels": 10,
            "model.channels": 8,
            "model.drop_path": 0.3,
            "adapt.iterations": 2,
            "adapt.batch_size": 4,
            "adapt.pseudo_labels.confidence_threshold": 0.4,
            "adapt.losses.feature_distance": 1.0,
            "adapt.losses.masked": 1.0,
            "adapt.feature_distance.min_share": 0.3,
            "runtime.workers": 0,
            "runtime.picture_every": 1,
        }
    )


def counted_messages() -> Counter[str]:
    """How often each kind of message is sent from here on."""
    messages: Counter[str] = Counter()

    def counted(name: str, send: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_send(*arguments: Any, **options: Any) -> Any:
            messages[name] += 1
            return send(*arguments, **options)

        return count_and_send

    for name in ("all_reduce", "all_gather", "broadcast", "barrier"):
        setattr(distributed, name, counted(name, getattr(distributed, name)))
    return messages


def one_step(folder: Path, at_once: int | None = None) -> None:
    """A joint step of this process; leaves its samples, gradients and report in a file.

    Statistics of batch normalisation are frozen: CPUs have no layer that synchronises them.
    """
    torch.set_num_threads(1)
    params = step_params()
    source, target = read_index(folder / "source"), read_index(folder / "target")
    with joined(torch.device("cpu")):
        network = imagenet_network(params, 19)
        with torch.no_grad():  # a teacher that is sure of something
            for values in network.classifier.parameters():
                values.mul_(50)
        networks = start_networks(network, target, params)
        for layer in batch_normalisations(networks.student):
            layer.eval()
        taken: dict[str, torch.Tensor] = {}
        step: Callable[..., Any] = adaptation.joint_step

        def watch(*arguments: Any) -> Any:
            taken["source"], taken["target"] = arguments[1].images, arguments[2].images
            return step(*arguments)

        import ssda.engine.adapting as adapting

        adapting.joint_step = watch
        messages = counted_messages()
        params = changed(params, {"adapt.micro_batch_size": at_once})
        record = next(adapt_steps(networks, [source], target, params, CITYSCAPES))
        adapting.joint_step = step
        gradients = {
            name: values.grad
            for name, values in networks.student.named_parameters()
            if values.grad is not None
        }
        content = {"taken": taken, "gradients": gradients, "report": asdict(record.report)}
        content["messages"] = dict(messages)
        name = f"{processes.count()}-{processes.rank()}"
        torch.save(content, folder / (f"{name}.pt" if at_once is None else "micro-batches.pt"))


def look_at_whole_images(folder: Path) -> None:
    """Statistics and scores of this process, of three images; leaves them in a file."""
    torch.set_num_threads(1)
    params = step_params()
    params = params.model_copy(update={"adapt": params.adapt.model_copy(update={"batch_size": 1})})
    source, target = read_index(folder / "source"), read_index(folder / "target")
    read: list[str] = []
    with joined(torch.device("cpu")):
        original = loading.read_image

        def reading(path: Path, *arguments: Any) -> Any:
            read.append(path.name)
            return original(path, *arguments)

        loading.read_image = reading
        network = imagenet_network(params, 19)
        target = replace(target, records=target.records[:3])
        use_target_statistics(network, target, params)
        statistics = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
        for_statistics, read[:] = list(read), []
        source = replace(source, records=source.records[:3])
        evaluated = params.model_copy(
            update={"runtime": params.runtime.model_copy(update={"evaluation_batch_size": 1})}
        )
        confusion, _ = score([network, network], source, evaluated)
        for_score = list(read)
        label_free = label_free_score(network, target, torch.full((19,), 1 / 19), evaluated)
        loading.read_image = original
        layer = torch.nn.SyncBatchNorm(2)
        groups: list[Any] = []
        reestimate_statistics(layer, range(1), lambda _: groups.append(layer.process_group))
        assert layer.process_group is None
        content = {
            "statistics": statistics,
            "batches": int(batch_normalisations(network)[0].num_batches_tracked or 0),
            "confusion": confusion,
            "label_free": label_free,
            "read": [for_statistics, for_score],
            "together": [distributed.get_world_size(g) for g in groups if g is not None],
        }
        torch.save(content, folder / f"{processes.count()}-{processes.rank()}.pt")


def one_of_two(work: Callable[[Path], None], folder: Path, rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    work(folder)


def by_one_and_by_two(work: Callable[[Path], None], folder: Path) -> list[dict[str, Any]]:
    """What the work leaves in its files: of a process alone, then of each of two."""
    work(folder)
    port = 29400 + os.getpid() % 1000
    children = [
        context.Process(target=one_of_two, args=(work, folder, rank, port)) for rank in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in ("1-0", "2-0", "2-1")]


def test_two_processes_share_whole_images_and_find_what_one_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    alone, first, second = by_one_and_by_two(look_at_whole_images, folder)
    for which in (0, 1):
        shares = first["read"][which], second["read"][which]
        assert [len(share) for share in shares] == [2, 1]
        assert sorted(shares[0] + shares[1]) == sorted(alone["read"][which])
    for other in (first, second):
        for name, values in alone["statistics"].items():
            torch.testing.assert_close(other["statistics"][name], values, rtol=1e-4, atol=1e-5)
        assert other["batches"] == alone["batches"] == 3
        assert other["confusion"].sum() == alone["confusion"].sum()
        assert (other["confusion"] - alone["confusion"]).abs().sum() <= 10
        assert other["label_free"] == pytest.approx(alone["label_free"], rel=1e-3)
        assert other["together"] == [1]  # each by itself, where layers are synchronised
    assert torch.equal(first["confusion"], second["confusion"])


def test_two_processes_equal_one_and_so_do_micro_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    alone, first, second = by_one_and_by_two(one_step, folder)
    one_step(folder, at_once=2)
    in_turn = torch.load(folder / "micro-batches.pt", weights_only=True)
    for name, images in alone["taken"].items():
        assert torch.equal(images, torch.cat([first["taken"][name], second["taken"][name]]))
    told = alone["report"]["scalars"]
    assert told["seeds"] > 0 and told["thing_cell_share"] > 0 and 0 < told["certain_share"] < 1
    # Labelled source pixels, cells of things, q, unsure pixels; gradients and statistics; report.
    # The picture asks for q and seeds once more.
    assert first["messages"] == {"all_reduce": 7, "all_gather": 2} and alone["messages"] == {}
    for kind, values in alone["report"].items():
        # Of images the first ones of a batch are shown, which the first process has.
        for other in (first, in_turn) if kind == "images" else (first, second, in_turn):
            torch.testing.assert_close(
                other["report"][kind], values, rtol=1e-4, atol=1e-6, equal_nan=True
            )
    scale = max(float(values.abs().max()) for values in alone["gradients"].values())
    for name, values in alone["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name])
        for other in (first, in_turn):
            torch.testing.assert_close(
                other["gradients"][name], values, rtol=1e-3, atol=1e-6 * scale, msg=name
            )


def test_a_batch_that_cannot_be_shared_out_is_told_before_any_process_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NPROC", "3")
    with pytest.raises(ValueError, match=r"adapt.batch_size = 4: must be a multiple of .* = 3"):
        launch("adapt", step_params(), lambda _: None)
    monkeypatch.setenv("NPROC", "two")
    with pytest.raises(SystemExit, match="error: NPROC = 'two': must be a whole number >= 1"):
        guard(lambda: launch("adapt", step_params(), lambda _: None), debug=False)


def test_processes_that_are_asked_to_stop_have_minutes_to_write_their_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []

    def start(config: LaunchConfig, *_: str) -> Callable[..., None]:
        waits.append(config.shutdown_timeout or 0)
        return lambda *_: None

    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    launch("adapt", step_params(), lambda _: None)
    assert waits == [600]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        MemoryError("Unable to allocate 7.11 PiB of memory for an array"),
    ],
)
def test_out_of_memory_names_what_to_lower(error: Exception) -> None:
    def fail(_: Params) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        guard(lambda: launch("adapt", step_params(), fail), debug=False)
    line = str(caught.value.code)
    assert "\n" not in line
    named = ("adapt.batch_size = 4", "images.crop = [64, 32]", "adapt.micro_batch_size", "memory")
    for part in (*named, "model.channels"):
        assert part in line
    with pytest.raises(RuntimeError, match="another"):
        launch("adapt", step_params(), lambda _: (_ for _ in ()).throw(RuntimeError("another")))


def test_alone_every_function_gives_back_what_it_gets() -> None:
    values = torch.rand(4, 2)
    assert processes.summed(values) is values and processes.gathered(values) is values
    assert processes.divided(values) is values and processes.own(values) is not None
    assert torch.equal(processes.own(values), values)
    assert processes.mean_factor(values > 0.5) == 1.0
    assert processes.part(7) == 7
    assert not processes.any_of(False) and processes.any_of(True)
