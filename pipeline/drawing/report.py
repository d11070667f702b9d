"""One HTML page of an experiment, or of several side by side.

All of it comes from files that git and DVC track: nothing is run, MLflow is not asked, and the page
holds its pictures, so that it can be sent and read without a network.
"""

from __future__ import annotations

import base64
import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.repository import git
from pipeline.values import changes, flat
from ssda.sections import parse_json, parse_yaml

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem  # pyright: ignore[reportPrivateUsage]
    from matplotlib.figure import Figure

WORKSPACE = "workspace"
NETWORKS = {
    "source_only": "source only",
    "reestimated": "statistics re-estimated",
    "student": "adapted student",
    "adapted": "adapted (teacher)",
}
ENDS = ("source_only", "adapted")
"""The networks whose classes are compared."""
VALIDATION, LOSSES = "metrics/adapt/validation.csv", "metrics/adapt/losses.csv"
PRETRAINING = "metrics/pretrain/validation.csv"
CURVES = (
    ("validation mIoU, teacher", VALIDATION, "validation_miou", "per cent"),
    ("label-free score", VALIDATION, "label_free_score", "bits"),
    ("share of certain pixels", LOSSES, "certain_share", "share"),
    ("share of seeds", LOSSES, "seeds", "share"),
    ("mean uncertainty", LOSSES, "uncertainty", "uncertainty"),
    ("loss on mixed images", LOSSES, "loss_mix", "loss"),
    ("loss on the source", LOSSES, "loss_source", "loss"),
    ("validation mIoU, pretraining", PRETRAINING, "validation_miou", "per cent"),
)
"""Title, file, column and unit of each curve that is drawn."""
SHEETS = 6
"""How many pictures of training are shown, at most."""
TEMPLATE = Path(__file__).with_name("page.html")

Table = tuple[Sequence[str], list[tuple[str, ...]]]
"""Header and rows."""


@dataclass(frozen=True)
class Experiment:
    """The files of the workspace or of a git revision, such as a DVC experiment.

    Attributes:
        name: of the experiment, branch, tag or commit.
        commit: its hash; for the workspace that of HEAD.
        files: what git and DVC track there.
    """

    name: str
    commit: str
    files: DVCFileSystem

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none, or not in DVC's cache here."""
        from dvc.exceptions import DvcException
        from dvc_data.index import DataIndexDirError

        try:
            content = self.files.cat_file(path)
        except (OSError, DvcException, DataIndexDirError):
            return None
        assert isinstance(content, bytes)
        return content

    def listed(self, folder: str) -> list[str]:
        """Paths in a folder, sorted; none where it is missing, or not in DVC's cache here."""
        from dvc_data.index import DataIndexDirError

        try:
            return sorted(self.files.ls(folder, detail=False))
        except (OSError, DataIndexDirError):
            return []

    def json(self, path: str) -> dict[str, Any]:
        """A JSON file's content; ValueError where it is missing."""
        if (content := self.read(path)) is None:
            raise ValueError(f"{self.name}: no {path}; dvc repro makes it, dvc pull fetches it")
        return parse_json(content, f"{self.name}: {path}")

    def points(self, path: str, column: str) -> list[tuple[int, float]]:
        """Step and value of a curve in a CSV file; none where it is missing."""
        rows = csv.DictReader(io.StringIO((self.read(path) or b"").decode()))
        return [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]

    def values(self, path: str) -> dict[str, str]:
        """{"adapt.trucrf.radius": "5", ...}, without `runtime`, which changes no result."""
        return flat(parse_yaml(self.read(path) or b"{}", f"{self.name}: {path}"))

    def picture(self, path: str) -> tuple[str, str | None]:
        """The path of a PNG file, and its content as an address; None where it is not here."""
        content = self.read(path)
        return path, None if content is None else _address("png", content)

    @cached_property
    def scores(self) -> dict[str, Any]:
        """What evaluation found."""
        return self.json("metrics/evaluate.json")

    @cached_property
    def params(self) -> dict[str, str]:
        """Its parameters."""
        return self.values("params.yaml")

    @cached_property
    def streets(self) -> list[str]:
        """Names of the streets that evaluation drew; none where they are not here."""
        return sorted(Path(path).name for path in self.listed("metrics/streets"))

    def street(self, name: str, kind: str) -> str | None:
        """A picture of a street as an address: image, truth or adapted; None without one."""
        return self.picture(f"metrics/streets/{name}/{kind}.png")[1]

    @property
    def sheets(self) -> list[tuple[str, str | None]]:
        """The pictures of training, evenly chosen where there are many."""
        paths = self.listed("metrics/adapt/pictures")
        last = max(len(paths) - 1, 1)
        chosen = sorted({round(i * last / (SHEETS - 1)) for i in range(SHEETS)})
        return [self.picture(paths[i]) for i in chosen if i < len(paths)]

    @property
    def sets(self) -> list[tuple[str, str]]:
        """How many images there are of each set."""
        facts = parse_json(self.read("metrics/convert.json") or b"{}", "metrics/convert.json")
        return [
            (f"{domain}: {name}", str(split["images"]))
            for domain in ("sources", "target")
            for name, split in facts.get(domain, {}).items()
        ]

    @cached_property
    def base(self) -> str:
        """The commit that a DVC experiment started from; empty for what is none."""
        found = self.name != WORKSPACE and git("for-each-ref", f"refs/exps/*/*/{self.name}")
        return git("rev-parse", f"{self.commit}^") if found else ""

    @property
    def origin(self) -> str:
        """Where it comes from."""
        told = git("show", "-s", "--format=%h, %cs: %s", self.base or self.commit)
        if self.name == WORKSPACE:
            changed = ", with changes" if git("status", "--porcelain") else ""
            return f"The workspace at commit {told}{changed}"
        return f"DVC experiment on commit {told}" if self.base else f"Commit {told}"

    @property
    def commands(self) -> str:
        """The commands that bring it back and repeat it."""
        name = shlex.quote(self.name)
        if self.name == WORKSPACE:
            return "dvc repro"
        if not self.base:
            return f"git checkout {name}\ndvc checkout"
        changed = changes(find_experiment(self.base).params, self.params)
        again = " ".join(["dvc exp run", *changed])
        return f"dvc exp apply {name}\n\n# or anew\ngit checkout {self.base[:10]}\n{again}"


def find_experiment(name: str) -> Experiment:
    """The workspace, or what git or DVC call so; ValueError where there is nothing."""
    from dvc.api import DVCFileSystem  # pyright: ignore[reportPrivateUsage]
    from dvc.exceptions import DvcException
    from dvc.scm import resolve_rev

    try:
        files = DVCFileSystem()
        if name == WORKSPACE:
            return Experiment(name, git("rev-parse", "HEAD"), files)
        commit = resolve_rev(files.repo.scm, name)
        return Experiment(name, commit, DVCFileSystem(rev=commit))
    except DvcException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name}: {reason}; dvc exp list names experiments, '{WORKSPACE}' is what lies here"
        ) from error


def page(names: Sequence[str]) -> str:
    """The page's text; ValueError for a name that nothing has, or an experiment without scores."""
    from pipeline.drawing.figures import bars, curve
    from pipeline.drawing.html import rendered

    experiments = [find_experiment(name) for name in dict.fromkeys(names)]
    first = experiments[0]
    if len(experiments) == 1:
        there = {name: first.scores[name] for name in NETWORKS if first.scores[name]}
        results = _results({NETWORKS[name]: scores for name, scores in there.items()})
        ious = {NETWORKS[name]: scores["iou"] for name, scores in there.items()}
        drawn = {NETWORKS[name]: there[name]["iou"] for name in ENDS if name in there}
        params = {"demo": first.values("presets/demo.yaml"), "here": first.params}
    else:
        results = _comparison(experiments)
        classes = first.scores["adapted"]["iou"]
        found = {each.name: each.scores["adapted"]["iou"] for each in experiments}
        ious = drawn = {name: {c: iou.get(c) for c in classes} for name, iou in found.items()}
        params = {each.name: each.params for each in experiments}
    lines = [
        (title, unit, {each.name: each.points(path, column) for each in experiments})
        for title, path, column, unit in CURVES
    ]
    return rendered(
        TEMPLATE,
        title=_headline(experiments),
        experiments=experiments,
        streets=_streets(experiments) if len(experiments) > 1 else [],
        results=results,
        bars=_svg(bars(drawn)),
        classes=_classes(ious),
        curves=[_svg(curve(*line)) for line in lines if any(line[2].values())],
        changed=_differences(params),
    )


def _streets(experiments: Sequence[Experiment]) -> list[tuple[str, list[str | None]]]:
    """A street a row: its name, then its image, the truth, and the labels of each experiment."""
    where = {name: each for each in reversed(experiments) for name in each.streets}
    return [
        (
            name,
            [where[name].street(name, kind) for kind in ("image", "truth")]
            + [each.street(name, "adapted") for each in experiments],
        )
        for name in sorted(where)
    ]


def _headline(experiments: Sequence[Experiment]) -> str:
    """The result: of one experiment beside the source alone, of several the best first."""
    found = {each.name: each.scores["adapted"]["miou"] for each in experiments}
    best = sorted(found, key=lambda name: -(found[name] or 0.0))
    scores = ", ".join(f"{name} {_number(found[name])}" for name in best)
    before = experiments[0].scores["source_only"] if len(experiments) == 1 else None
    return f"mIoU: {scores}" + (f", source only {_number(before['miou'])}" if before else "")


def _results(scores: Mapping[str, Any]) -> Table:
    """A network a row, a score a column."""
    keys = [key for key in scores[NETWORKS["adapted"]] if key != "iou"]
    rows = [(title, *(_number(found[key]) for key in keys)) for title, found in scores.items()]
    return ("network", *map(_title, keys)), rows


def _comparison(experiments: Sequence[Experiment]) -> Table:
    """A score of a network a row, an experiment a column."""
    scores = {each.name: each.scores for each in experiments}
    keys = dict.fromkeys(key for s in scores.values() for key in s["adapted"] if key != "iou")
    rows = [
        (f"{_title(key)}, {label}", *(_number((s[name] or {}).get(key)) for s in scores.values()))
        for key in keys
        for name, label in NETWORKS.items()
    ]
    return ("", *scores), rows


def _classes(ious: Mapping[str, Mapping[str, float | None]]) -> Table:
    """A class a row; a network or an experiment a column."""
    names = next(iter(ious.values()))
    return ("class", *ious), [(c, *(_number(iou[c]) for iou in ious.values())) for c in names]


def _differences(params: Mapping[str, Mapping[str, str]]) -> Table:
    """The parameters that are not the same everywhere."""
    keys = dict.fromkeys(key for values in params.values() for key in values)
    rows = [(key, *(values.get(key, "") for values in params.values())) for key in keys]
    return ("parameter", *params), [row for row in rows if len({*row[1:]}) > 1]


def _svg(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return _address("svg+xml", content.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _title(key: str) -> str:
    return key.replace("miou", "mIoU").replace("_", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
