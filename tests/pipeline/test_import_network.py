"""Released files in and out by the command: what is written, what is refused, and how."""

import argparse
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.import_network import main
from ssda.engine.checkpoints import load_network
from ssda.labels import CITYSCAPES
from tests import published

SYSTEM: Any = vars(os)["system"]
FILE, OUT = Path("hrda.pth"), Path("models/hrda.safetensors")
META: dict[str, Any] = {
    "mmcv_version": "1.3.7",
    "time": "Mon Jan  3",
    "CLASSES": CITYSCAPES.names,
    "PALETTE": [list(colour) for colour in CITYSCAPES.colours],
    "hook_msgs": {"best_score": np.float64(0.738), "best_iter": np.int64(40000)},
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A file of a training run: student, teacher and ImageNet encoder, with an optimiser."""
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for i, prefix in enumerate(("model.", "ema_model.", "imnet_model.")):
        network = published.daformer(32, (2, 2, 2, 2), 19, double=True)
        for name, value in published.randomise(network, i).state_dict().items():
            state[prefix + name] = value
    return {"meta": META, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["import_network", *map(str, arguments)])
    main()


def networks(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def name_as_old_numpy(path: Path) -> None:
    """Files of that time name NumPy's scalars by the module that they were in."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            old = part.replace(b"numpy._core", b"numpy.core") if "data.pkl" in name else part
            assert "data.pkl" not in name or old != part
            archive.writestr(name, old)


def test_the_teacher_comes_in_where_it_is_asked_for(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(content, FILE)
    run(monkeypatch, FILE, "--out", OUT, "--network", "teacher")
    found = load_file(OUT)["encoder.network.network.norm1.weight"]
    assert torch.equal(found, content["state_dict"]["ema_model.backbone.norm1.weight"])
    assert not torch.equal(found, content["state_dict"]["model.backbone.norm1.weight"])


def test_a_training_run_s_file_comes_in_and_goes_out_bit_for_bit(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(content, FILE)
    name_as_old_numpy(FILE)
    run(monkeypatch, FILE, "--out", OUT)
    network, space = load_network(OUT)
    assert (network.encoder.name, network.detail, space) == ("mit_b0", (512, 512), CITYSCAPES)
    run(monkeypatch, OUT, "--to", "mmseg", "--out", "again.pth")
    again = torch.load("again.pth", weights_only=True)
    expected = networks(content["state_dict"], "model.")
    assert again["state_dict"].keys() == expected.keys()
    assert all(torch.equal(again["state_dict"][name], v) for name, v in expected.items())
    assert again["meta"] == {key: META[key] for key in ("CLASSES", "PALETTE")}
    run(monkeypatch, "again.pth", "--out", "twice.safetensors")
    assert Path("twice.safetensors").read_bytes() == OUT.read_bytes()


def test_other_classes_need_their_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = published.randomise(published.daformer(32, (2, 2, 2, 2), 3, double=False), 0)
    torch.save({"state_dict": network.state_dict()}, FILE)
    Path("own.yaml").write_text("classes: {a: [0, 0, 0], b: [1, 0, 0], c: [2, 0, 0]}\n")
    run(monkeypatch, FILE, "--out", OUT, "--labels", "own.yaml")
    assert load_network(OUT)[1].names == ("a", "b", "c")
    told = "mit_b0 with daformer of 256 channels at one resolution, 3 classes"
    assert told in capsys.readouterr().out


class Harm:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return SYSTEM, ("touch harmed",)


def plain(classes: int = 19, **meta: object) -> dict[str, Any]:
    network = published.daformer(32, (2, 2, 2, 2), classes, double=False)
    return {"meta": meta, "state_dict": published.randomise(network, 0).state_dict()}


def saved(make: Callable[[], object]) -> Callable[[], None]:
    return lambda: torch.save(make(), FILE)


def truncated() -> None:
    torch.save(plain(), FILE)
    FILE.write_bytes(FILE.read_bytes()[: FILE.stat().st_size // 2])


ROWS: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (lambda: None, "no such file"),
    "empty": (FILE.touch, "not a file of PyTorch, or a damaged one"),
    "text": (lambda: FILE.write_text("hello, world\n"), "not a file of PyTorch, or a damaged one"),
    "truncated": (truncated, "not a file of PyTorch, or a damaged one"),
    **{
        f"pickled code, protocol {protocol}": (
            lambda protocol=protocol: FILE.write_bytes(pickle.dumps(Harm(), protocol=protocol)),
            f"holds {SYSTEM.__module__}.system, which is neither tensor, text nor number",
        )
        for protocol in (0, 2, 4, 5)
    },
    "code beside tensors": (
        saved(lambda: plain(x=Harm())),
        f"holds {SYSTEM.__module__}.system, which is neither tensor, text nor number",
    ),
    "an object beside tensors": (
        saved(lambda: plain(x=argparse.Namespace())),
        "holds argparse.Namespace, which is neither",
    ),
    "a list": (saved(lambda: [1, 2]), "holds no tensors by name"),
    "a tensor": (saved(lambda: torch.zeros(3)), "holds no tensors by name"),
    "no tensors": (saved(lambda: {"state_dict": {}}), "holds no tensors by name"),
    "numbers": (saved(lambda: {"state_dict": {"a": 1}}), "'a' is no tensor"),
    "classes": (saved(lambda: plain(5)), "has 5 classes, labels cityscapes 19; --labels takes"),
    "order of classes": (
        saved(lambda: plain(CLASSES=CITYSCAPES.names[::-1])),
        "meta.CLASSES has 'bicycle' where labels cityscapes has 'road'",
    ),
    "lightning": (
        saved(
            lambda: {
                "epoch": 3,
                "pytorch-lightning_version": "2.1.0",
                "state_dict": {"model.net.weight": torch.zeros(3)},
            }
        ),
        r"not a network of a known kind \(no such backbone; first tensor: net.weight\)",
    ),
    "timm": (
        saved(lambda: timm.create_model("resnet18").state_dict()),
        r"not a network of a known kind \(no such backbone; first tensor: bn1.bias\)",
    ),
    "a name of two lines": (
        saved(lambda: {"state_dict": {"a\nb": torch.zeros(1)}}),
        r"'a\\nb': control characters in a name",
    ),
    "ours": (saved(lambda: {"meta": {}, "state_dict": {"backbone.x": torch.zeros(1)}}), "not a"),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_files_are_one_line_and_nothing_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = ROWS[name]
    make()
    with pytest.raises(SystemExit, match=rf"^error: hrda\.pth: {message}") as end:
        run(monkeypatch, FILE, "--out", OUT)
    assert "\n" not in str(end.value)
    assert not OUT.parent.exists() and not Path("harmed").exists()


def test_the_other_way_needs_a_published_form(monkeypatch: pytest.MonkeyPatch) -> None:
    FILE.write_text("no network")
    with pytest.raises(SystemExit, match=r"^error: hrda\.pth: not a safetensors file"):
        run(monkeypatch, FILE, "--to", "mmseg", "--out", "out.pth")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, FILE, "--to", "mmseg", "--out", "out.pth", "--network", "teacher")
    assert not Path("out.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FILE, "--out", FILE), r"--out hrda\.pth: must end in \.safetensors"),
        (
            ("other.safetensors", "--out", "./other.safetensors"),
            "--out other.*: is the file itself",
        ),
        ((OUT, "--to", "mmseg", "--out", OUT), r"--out models/hrda.safetensors: must end in \.pth"),
    ],
)
def test_no_file_takes_the_place_of_the_one_that_is_read(
    arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(plain(), FILE)
    save_file(plain()["state_dict"], "other.safetensors")
    run(monkeypatch, FILE, "--out", OUT)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=rf"^error: {message}") as end:
        run(monkeypatch, *arguments)
    assert "\n" not in str(end.value)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_windows_that_no_grid_fits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(plain(), FILE)
    for detail in ((50, 64), (64, 0)):
        with pytest.raises(SystemExit, match=r"^error: detail = .*must be multiples of 32$"):
            run(monkeypatch, FILE, "--out", OUT, "--detail", *detail)
