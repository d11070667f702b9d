"""Score networks on any labelled split: python -m pipeline.score --model FILE ... --root DIR.

Released and own ones side by side, in the way that --protocol names; nothing of the pipeline is
read but params.yaml, nothing is touched. --predictions writes what Cityscapes' server takes.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline import command
from ssda.files import write_json
from ssda.labels import CITYSCAPES_IDS, LabelSpace
from ssda.params import Params, Size, Windows, square_windows
from ssda.sections import changed

if TYPE_CHECKING:
    import numpy as np

    from ssda.datasets.index import Index
    from ssda.engine.evaluation import Labelled
    from ssda.networks.segmenter import Segmenter


@dataclass(frozen=True)
class View:
    """How a network looks at images.

    Attributes:
        resize: images are resized to this (width, height) first.
        windows: what slides over them; None for an image as a whole.
    """

    resize: Size | None = None
    windows: Windows | None = None


WHOLE = View()
WINDOWS = View(windows=Windows(extent=(1024, 1024), step=(512, 512)))
PROTOCOLS = {
    "daformer": View(resize=(1024, 512)),
    "hrda": WINDOWS,
    "mic": WINDOWS,
    "ssda": WHOLE,
}
"""How the authors score on Cityscapes; HRDA's and MIC's ResNets see images as a whole."""


@dataclass(frozen=True)
class Split:
    """A raw split.

    Attributes:
        layout: as `ssda.datasets.layouts.load_layout` takes it.
        root: its folder.
        split: its name.
        labelled: whether it has labels; without, nothing is scored.
    """

    layout: str
    root: Path
    split: str
    labelled: bool = True


def score(
    models: Sequence[Path],
    raw: Split,
    view: View | str,
    params: Params,
    predictions: Path | None = None,
) -> tuple[dict[Path, dict[str, Any]], LabelSpace]:
    """What `pipeline.evaluate.summary` says of each file's network, and the classes.

    Args:
        models: files of networks, of the same classes.
        raw: what they are scored on.
        view: how all look at images, or the name of a protocol.
        params: flip, device, precision, workers, batch size.
        predictions: folder for PNGs of Cityscapes' label ids, named as the images; with several
            files one below it for each.

    Raises:
        ValueError: a file, layout or image is not as it should be; before any work where it can.
    """
    from tqdm import tqdm

    from pipeline.evaluate import summary
    from ssda.datasets.image_files import write_png
    from ssda.engine.device import pick_device, place, set_up
    from ssda.engine.evaluation import score as count

    device = pick_device(params.runtime.device)
    set_up(device, params.compute)
    names = column_names(models)
    networks, space = load_networks(models)
    ids = label_ids(space) if predictions is not None else None
    views = {path: view_of(view, network) for path, network in networks.items()}
    found: dict[Path, dict[str, Any]] = {}
    progress = params.runtime.progress and sys.stderr.isatty()
    with TemporaryDirectory() as folder:
        index = read_split(raw, space, Path(folder) / "split", progress=progress)
        total = len(index.records) * len({*views.values()})
        with tqdm(total=total, desc="score", unit=" images", disable=not progress) as bar:
            for same in dict.fromkeys(views.values()):
                group = [path for path in models if views[path] == same]
                placed = [place(networks[path], device, params.compute) for path in group]

                def watch(seen: Labelled, group: list[Path] = group) -> None:
                    bar.update()
                    if predictions is None or ids is None:
                        return
                    for path, labels in zip(group, seen.found, strict=True):
                        out = predictions if len(models) == 1 else predictions / names[path]
                        name = f"{Path(seen.record.image).stem}.png"
                        write_png(out / name, ids[labels.cpu().numpy()])

                for path, confusion in zip(
                    group, count(placed, index, as_params(same, params), watch), strict=True
                ):
                    told = summary(confusion, space, tuple(space.subsets))
                    windows = same.windows and same.windows.model_dump(mode="json")
                    found[path] = {"resize": same.resize, "windows": windows, **told}
    return {path: found[path] for path in models}, space


def load_networks(models: Sequence[Path]) -> tuple[dict[Path, Segmenter], LabelSpace]:
    """The networks and their classes; ValueError where these differ."""
    from ssda.engine.checkpoints import load_network

    loaded = {path: load_network(path) for path in models}
    first = loaded[models[0]][1]
    for path, (_, space) in loaded.items():
        if space.names != first.names:
            raise ValueError(f"{path}: has other classes than {models[0]}: score them apart")
    return {path: network for path, (network, _) in loaded.items()}, first


def read_split(raw: Split, space: LabelSpace, out: Path, *, progress: bool) -> Index:
    """The split, its labels as train ids below `out`; raises what the stage convert does."""
    from pipeline.convert import convert_raw
    from pipeline.splits import RawSplit
    from ssda.datasets.layouts import check_classes, load_layout

    layout = load_layout(raw.layout)
    check_classes(layout, space, "of the network")
    split = RawSplit("score", layout, raw.root, raw.split, space, raw.labelled, None)
    index = convert_raw(split, out, progress=progress)
    stems = {Path(record.image).stem for record in index.records}
    if len(stems) < len(index.records):
        raise ValueError(f"{raw.root}: images of one name in several folders: score them apart")
    return index


def view_of(view: View | str, network: Segmenter) -> View:
    """How a network looks at images; windows of HRDA and MIC are those of their transformers."""
    from ssda.networks.heads import LastStage

    if isinstance(view, View):
        return view
    whole = PROTOCOLS[view] is WINDOWS and isinstance(network.head, LastStage)
    return WHOLE if whole else PROTOCOLS[view]


def as_params(view: View, params: Params) -> Params:
    """The parameters with that view."""
    return changed(params, {"images.target_size": view.resize, "evaluate.windows": view.windows})


def label_ids(space: LabelSpace) -> np.ndarray:
    """Cityscapes' label id of each train id; ValueError for a class that it does not have."""
    import numpy as np

    ids = {name: number for number, name in CITYSCAPES_IDS.items()}
    for name in space.names:
        if name not in ids:
            raise ValueError(f"--predictions: class {name!r} has no label id in Cityscapes")
    return np.array([ids[name] for name in space.names], np.uint8)


def column_names(models: Sequence[Path]) -> dict[Path, str]:
    """A short name of each file; ValueError where two share one."""
    names = {path: path.stem for path in models}
    if len({*names.values()}) < len(models):
        raise ValueError("--model: two files of one name: rename one")
    return names


def table(found: dict[Path, dict[str, Any]], space: LabelSpace) -> str:
    """A line a class and a mean, a column a network, in per cent; - where there is no truth."""
    rows = [["per cent", *column_names([*found]).values()]]
    for name in space.names:
        rows.append([name, *(_number(each["iou"][name]) for each in found.values())])
    means = {f"mIoU ({space.num_classes} classes)": "miou"}
    means |= {f"mIoU ({len(space.subsets[key])} classes)": f"miou_{key}" for key in space.subsets}
    for title, key in (means | {"pixel accuracy": "pixel_accuracy"}).items():
        rows.append([title, *(_number(each[key]) for each in found.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """The command line."""
    options = command.parser(__doc__)
    add = options.add_argument
    add("--model", type=Path, nargs="+", required=True, help="files of networks")
    add("--layout", help="gta, synthia, cityscapes or a YAML (default: target's)")
    add("--root", type=Path, help="folder of the raw set (default: target.root)")
    add("--split", help="of the raw set (default: target.report)")
    add("--unlabelled", action="store_true", help="it has no labels: --predictions alone")
    add("--protocol", choices=PROTOCOLS, help="look at images as these authors do")
    number = command.at_least(1)
    text = "slide square windows over the (resized) image, in pixels (default: see it whole)"
    add("--windows", nargs=2, type=number, metavar=("EXTENT", "STEP"), help=text)
    text = "images to this first"
    add("--resize", nargs=2, type=number, metavar=("WIDTH", "HEIGHT"), help=text)
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--device", choices=("auto", "cuda", "cpu"), help="default: runtime.device")
    add("--predictions", type=Path, help="folder for PNGs of Cityscapes' label ids")
    add("--json", type=Path, help="file for the scores")

    def work(given: Namespace) -> None:
        if given.protocol and (given.windows or given.resize or given.flip):
            options.error("--protocol says windows, size and flip by itself")
        if given.unlabelled and not given.predictions:
            options.error("--unlabelled needs --predictions")
        if given.unlabelled and given.json:
            options.error("--unlabelled gives no scores for --json")
        if given.json and given.json.is_dir():
            raise ValueError(f"--json {given.json}: a folder; give a file")
        params = command.read_params(given.params)
        raw = Split(
            given.layout or params.target.layout,
            given.root or Path(params.target.root),
            given.split or params.target.report,
            labelled=not given.unlabelled,
        )
        view: View | str = given.protocol or WHOLE
        if given.windows or given.resize:
            resize = None if given.resize is None else tuple(given.resize)
            view = View(resize, square_windows(given.windows, "--windows"))
        device = given.device or params.runtime.device
        params = changed(params, {"evaluate.flip": given.flip, "runtime.device": device})
        found, space = score(given.model, raw, view, params, given.predictions)
        if raw.labelled:
            print(table(found, space))
        if given.predictions:
            print(f"label ids in {given.predictions}")
        if given.json:
            facts = {str(path): told for path, told in found.items()}
            place = {**asdict(raw), "root": str(raw.root)}
            write_json(given.json, {"data": place, "flip": given.flip, "networks": facts})

    command.start(options, work)


if __name__ == "__main__":
    main()
