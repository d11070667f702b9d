from pathlib import Path

import pytest
import torch

from pipeline.overlays import FOLDER, load_preset
from pipeline.parameters import commented
from pipeline.presets import use
from ssda.datasets.layouts import check_classes, load_layout
from ssda.labels import load_space
from ssda.networks.encoders import Encoder
from ssda.params import load_params
from tests.conftest import ROOT

NAMES = [path.stem for path in sorted((ROOT / FOLDER).glob("*.yaml"))]
DATA, NETWORKS, METHODS = (
    [path.stem for path in sorted((ROOT / FOLDER / topic).glob("*.yaml"))]
    for topic in ("data", "network", "method")
)


WITHOUT_SEEDS = {"source_only", "adabn", "dacs", "daformer", "hrda", "mic", "vfm_uda"}


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with presets of its own."""
    for name in ("data", "network", "method"):
        (tmp_path / FOLDER / name).mkdir(parents=True)
    (tmp_path / FOLDER / "demo.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path / FOLDER


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_valid(name: str) -> None:
    params = load_preset(name)
    space = load_space(params.labels)
    for raw in (*params.sources.values(), params.target):
        check_classes(load_layout(raw.layout), space, params.labels)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_can_be_built(network: str) -> None:
    with torch.device("meta"):
        Encoder(load_preset("demo", f"network/{network}").model)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_with_presets_of_each_kind(method: str) -> None:
    for name in ("gta_dinov3_l", "gta_half", "gta_small", "camvid", "demo"):
        untrained = load_preset(name).pretrain.iterations == 0
        if method == "corrected_from_start" and untrained:
            with pytest.raises(ValueError, match="a network that knows no class"):
                load_preset(name, f"method/{method}")
            continue
        params = load_preset(name, f"method/{method}")
        seeds = params.adapt.losses.target > 0 and params.adapt.iterations > 0
        assert seeds == (method not in WITHOUT_SEEDS)
        if method in ("hrda", "mic", "released", "two_resolutions"):
            assert params.model.detail == tuple(side // 2 for side in params.images.crop)
        else:
            assert params.model.detail is None


def test_overlays_that_are_named_lie_over_those_of_the_preset(own: Path) -> None:
    (own / "data/one.yaml").write_text("adapt:\n  batch_size: 1\n")
    (own / "mine.yaml").write_text("overlays: [data/one]\n")
    (own / "method/two.yaml").write_text("adapt:\n  batch_size: 2\n")
    (own / "network/three.yaml").write_text("adapt:\n  batch_size: 3\n")
    sizes = [load_preset(name, "method/two").adapt.batch_size for name in ("mine", "demo")]
    assert sizes == [2, 2]
    with pytest.raises(ValueError, match="batch_size is 2 in method/two and 3 in network/three"):
        load_preset("mine", "method/two", "network/three")


def test_every_network_goes_with_every_data() -> None:
    for number, name in enumerate(DATA):
        network = NETWORKS[number % len(NETWORKS)]
        load_preset("gta_resnet101", f"data/{name}", f"network/{network}")


def test_the_default_is_the_demo_preset(tmp_path: Path) -> None:
    assert (ROOT / "presets/demo.yaml").read_text() == (ROOT / "params.yaml").read_text()
    use(["demo"], tmp_path / "params.yaml")
    assert (tmp_path / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_a_preset_is_written_whole_with_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    use(["gta_mit_b5", "method/dacs", "data/gta", "data/synthia"], path)
    text = path.read_text()
    assert load_params(path) == load_preset("gta_mit_b5", "method/dacs", "data/gta", "data/synthia")
    assert commented(text) == text
    assert "\n  encoder: mit_b5            # name of a timm encoder" in text
    assert "  rare_class_temperature: null  # >= 0.0001; temp" in text
    assert "    learning_rate: 6.0e-5    # >= 1e-12; learning" in text
    assert text.index("\n  gta:\n") < text.index("\n  synthia:\n") and "\n  game:\n" not in text
    heads = ("# GTA -> Cityscapes with MiT-B5. Compare", "# MiT-B5 with DAFormer", "# Class mixing")
    assert [text.count(head) for head in heads] == [1, 1, 1]
    assert "keep ratios; pixels are" not in text


def test_what_a_preset_says_itself_lies_over_what_it_stands_on(own: Path) -> None:
    (own / "data/mine.yaml").write_text("images:\n  crop: [64, 64]\nadapt:\n  batch_size: 1\n")
    (own / "mine.yaml").write_text("overlays: [data/mine]\nadapt:\n  batch_size: 3\n")
    params = load_preset("mine")
    assert (params.images.crop, params.adapt.batch_size) == ((64, 64), 3)
    assert params.pretrain == load_preset("demo").pretrain


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapt:\n  losses:\n    sead: 1.0\n", r"presets/mine.yaml: adapt\.losses\.sead: no such"),
        ("adapt:\n  batch_size: none\n", r"mine: adapt\.batch_size = 'none': input should be a"),
        ("overlays: [gta]\n", "preset 'gta': allowed are demo, mine$"),
        ("overlays: 3\n", "presets/mine.yaml: overlays = 3: must be a list of names"),
        ("overlays: [mine]\n", "presets/mine.yaml: stands on itself"),
        (
            "overlays: [data/one, method/other]\n",
            r"mine\.yaml: adapt\.batch_size is 1 in data/one and 2 in method/other",
        ),
        ("- adapt\n", "presets/mine.yaml: must be sections of parameters"),
        ("adapt: {\n", r"presets/mine.yaml: line \d not valid YAML"),
    ],
)
def test_a_preset_that_is_wrong_is_refused(own: Path, text: str, said: str) -> None:
    (own / "data/one.yaml").write_text("adapt:\n  batch_size: 1\n")
    (own / "method/other.yaml").write_text("adapt:\n  batch_size: 2\n")
    (own / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        use(["mine"], Path("params.yaml"))
    assert "\n" not in str(error.value) and not Path("params.yaml").exists()
