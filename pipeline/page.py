"""One HTML page of an experiment, or of several side by side: python -m pipeline.page A B.

All of it comes from files that git and DVC track: nothing is run, MLflow is not asked, and the page
holds its pictures, so that it can be sent and read without a network.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import command
from pipeline.repository import git
from ssda.files import write_text
from ssda.sections import dotted, parse_json, parse_yaml

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
CURVES = (
    ("validation mIoU, teacher", "metrics/adapt/validation.csv", "validation_miou", "per cent"),
    ("label-free score", "metrics/adapt/validation.csv", "label_free_score", "bits"),
    ("share of certain pixels", "metrics/adapt/losses.csv", "certain_share", "share"),
    ("share of seeds", "metrics/adapt/losses.csv", "seeds", "share"),
    ("mean uncertainty", "metrics/adapt/losses.csv", "uncertainty", "uncertainty"),
    ("loss on mixed images", "metrics/adapt/losses.csv", "loss_mix", "loss"),
    ("loss on the source", "metrics/adapt/losses.csv", "loss_source", "loss"),
    (
        "validation mIoU, pretraining",
        "metrics/pretrain/validation.csv",
        "validation_miou",
        "per cent",
    ),
)
"""Title, file, column and unit of each curve that is drawn."""
SHEETS = 6
"""How many pictures of training are shown, at most."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 1100px; margin: auto; padding: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { background: white; border-radius: 4px; max-width: 100%; }
.wide img { min-width: min(900px, 220vw); }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.charts img { width: 100%; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; }
"""


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

        try:
            content = self.files.cat_file(path)
        except (OSError, DvcException):
            return None
        assert isinstance(content, bytes)
        return content

    def json(self, path: str) -> dict[str, Any]:
        """A JSON file's content; ValueError where it is missing."""
        if (content := self.read(path)) is None:
            raise ValueError(f"{self.name}: no {path}; dvc repro makes it, dvc pull fetches it")
        return parse_json(content, f"{self.name}: {path}")

    def rows(self, path: str) -> list[dict[str, str]]:
        """The rows of a CSV file, none where it is missing."""
        return list(csv.DictReader(io.StringIO((self.read(path) or b"").decode())))

    def params(self, path: str = "params.yaml") -> dict[str, str]:
        """{"adapt.trucrf.radius": "5", ...}, without `runtime`, which changes no result."""
        values = parse_yaml(self.read(path) or b"{}", f"{self.name}: {path}")
        return {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in dotted(values)
            if not key.startswith("runtime.")
        }


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


def page_of(experiment: Experiment) -> str:
    """The body of a page about one experiment."""
    from pipeline.report import bars

    scores = experiment.json("metrics/evaluate.json")
    parts = [
        _heading(experiment),
        f"<h2>Results</h2>{results(scores)}",
        _chart(bars({NETWORKS[name]: scores[name]["iou"] for name in ENDS if scores[name]})),
        f"<details><summary>IoU of each class as a table</summary>{classes(scores)}</details>",
        "<h2>What the networks see</h2>",
        _embedded(experiment, "metrics/pictures.png", "streets that no training has seen"),
        "<h2>What is taken for what</h2>",
        _embedded(experiment, "metrics/confusion.png", "confusion of classes"),
        f"<h2>Curves</h2>{charts([experiment])}",
        f"<h2>Adaptation at work</h2>{sheets(experiment)}",
        f"<h2>Data</h2>{data(experiment)}",
        "<h2>Parameters that differ from presets/demo.yaml</h2>",
        differences({"demo": experiment.params("presets/demo.yaml"), "here": experiment.params()}),
        "<details><summary>All parameters</summary>",
        f"{table(('parameter', 'value'), experiment.params().items())}</details>",
    ]
    return "\n".join(parts)


def comparison_of(experiments: Sequence[Experiment]) -> str:
    """The body of a page that compares experiments."""
    from pipeline.report import bars

    scores = {e.name: e.json("metrics/evaluate.json") for e in experiments}
    keys = dict.fromkeys(key for s in scores.values() for key in s["adapted"] if key != "iou")
    rows = [
        (f"{_title(key)}, {label}", *(_number((s[name] or {}).get(key)) for s in scores.values()))
        for key in keys
        for name, label in NETWORKS.items()
    ]
    first = scores[experiments[0].name]["adapted"]["iou"]
    ious = {name: {c: s["adapted"]["iou"].get(c) for c in first} for name, s in scores.items()}
    parts = [
        f"<h1>{escape(' / '.join(scores))}</h1>",
        f"<h2>Results, per cent</h2>{table(('', *scores), rows)}",
        "<h2>Parameters that differ</h2>",
        differences({e.name: e.params() for e in experiments}),
        f"<h2>Curves</h2>{charts(experiments)}",
        f"<h2>IoU of each class, adapted</h2>{_chart(bars(ious))}",
        "<details><summary>as a table</summary>",
        table(("class", *ious), [(c, *(_number(v[c]) for v in ious.values())) for c in first]),
        "</details>",
    ]
    for experiment in experiments:
        parts += [
            f"<h2>{escape(experiment.name)}</h2>{commands(experiment)}",
            _embedded(experiment, "metrics/pictures.png", "streets that no training has seen"),
        ]
    return "\n".join(parts)


def results(scores: Mapping[str, Any]) -> str:
    """A table: a network a row, a score a column."""
    keys = [key for key in scores["adapted"] if key != "iou"]
    titles = [_title(key) for key in keys]
    rows = [
        (title, *(_number(scores[name][key]) for key in keys))
        for name, title in NETWORKS.items()
        if scores[name] is not None
    ]
    note = f"<p>Per cent, on {scores['images']} images.</p>"
    return note + table(("network", *titles), rows)


def classes(scores: Mapping[str, Any]) -> str:
    """A table: a class a row, a network a column."""
    shown = [name for name in NETWORKS if scores[name] is not None]
    rows = [
        (name, *(_number(scores[network]["iou"][name]) for network in shown))
        for name in scores["adapted"]["iou"]
    ]
    return table(("class", *(NETWORKS[name] for name in shown)), rows)


def charts(experiments: Sequence[Experiment]) -> str:
    """The curves of experiments, one chart a curve."""
    found: list[str] = []
    for title, path, column, unit in CURVES:
        lines = {
            experiment.name: [
                (int(row["step"]), float(row[column]))
                for row in experiment.rows(path)
                if row.get(column)
            ]
            for experiment in experiments
        }
        if any(lines.values()):
            found.append(_chart(_lines(title, unit, lines)))
    return f'<div class="charts">{"".join(found)}</div>' if found else "<p>None here.</p>"


def sheets(experiment: Experiment) -> str:
    """The pictures of training, evenly chosen where there are many."""
    folder = "metrics/adapt/pictures"
    there = experiment.files.exists(folder)
    paths = sorted(experiment.files.ls(folder, detail=False)) if there else []
    last = max(len(paths) - 1, 1)
    chosen = sorted({round(i * last / (SHEETS - 1)) for i in range(SHEETS)})
    found = [_embedded(experiment, paths[i], paths[i]) for i in chosen if i < len(paths)]
    return "".join(found) or "<p>No pictures; runtime.picture_every asks for them.</p>"


def data(experiment: Experiment) -> str:
    """How many images there are of each set."""
    facts = experiment.json("metrics/convert.json")
    rows = [
        (f"{domain}: {name}", str(split["images"]))
        for domain in ("sources", "target")
        for name, split in facts[domain].items()
    ]
    return table(("set", "images"), rows)


def differences(params: Mapping[str, Mapping[str, str]]) -> str:
    """A table of the parameters that are not the same everywhere."""
    keys = list(dict.fromkeys(key for values in params.values() for key in values))
    rows = [(key, *(values.get(key, "") for values in params.values())) for key in keys]
    rows = [row for row in rows if len({*row[1:]}) > 1]
    return table(("parameter", *params), rows) if rows else "<p>None.</p>"


def commands(experiment: Experiment) -> str:
    """Where it comes from, and the commands that bring it back and repeat it."""
    name, commit = experiment.name, experiment.commit
    told = escape(git("show", "-s", "--format=%h, %cs: %s", commit))
    if name == WORKSPACE:
        changed = ", with changes" if git("status", "--porcelain") else ""
        return f"<p>The workspace at commit {told}{changed}.</p><pre>dvc repro</pre>"
    if not git("for-each-ref", f"refs/exps/*/*/{name}"):
        back = f"git checkout {shlex.quote(name)}\ndvc checkout"
        return f"<p>Commit {told}.</p><pre>{escape(back)}</pre>"
    base = git("rev-parse", f"{commit}^")
    before, after = find_experiment(base).params(), experiment.params()
    changed = [f"-S {shlex.quote(f'{k}={v}')}" for k, v in after.items() if before.get(k) != v]
    again = " ".join(["dvc exp run", *changed])
    told = escape(git("show", "-s", "--format=%h, %cs: %s", base))
    lines = f"dvc exp apply {shlex.quote(name)}\n\n# or anew\ngit checkout {base[:10]}\n{again}"
    return f"<p>DVC experiment on commit {told}.</p><pre>{escape(lines)}</pre>"


def table(header: Sequence[str], rows: Iterator[Sequence[str]] | Any) -> str:
    """An HTML table; all texts are escaped."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>\n" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def write_page(names: Sequence[str], out: Path) -> None:
    """Write the page; ValueError for a name that nothing has, or an experiment without scores."""
    experiments = [find_experiment(name) for name in dict.fromkeys(names)]
    body = page_of(experiments[0]) if len(experiments) == 1 else comparison_of(experiments)
    title = escape(", ".join(experiment.name for experiment in experiments))
    write_text(
        out,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SSDA: {title}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n",
    )


def _heading(experiment: Experiment) -> str:
    return f"<h1>{escape(experiment.name)}</h1>{commands(experiment)}"


def _embedded(experiment: Experiment, path: str, text: str) -> str:
    content = experiment.read(path)
    if content is None:
        return f"<p>{escape(path)} is not here; dvc pull fetches it where it was pushed.</p>"
    return f'<div class="wide">{_image("png", content, text)}</div>'


def _chart(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return _image("svg+xml", content.getvalue(), "chart")


def _image(kind: str, content: bytes, text: str) -> str:
    coded = base64.b64encode(content).decode()
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{coded}">'


def _lines(title: str, unit: str, lines: Mapping[str, list[tuple[int, float]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    axis = figure.subplots()
    for name, points in lines.items():
        axis.plot(*zip(*points, strict=True) if points else ((), ()), marker=".", label=name)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("step")
    axis.set_ylabel(unit)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=8)
    return figure


def _title(key: str) -> str:
    return key.replace("miou", "mIoU").replace("_", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "experiments",
        nargs="*",
        default=[WORKSPACE],
        help="DVC experiments, branches, tags or commits (default: what lies in the workspace)",
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()

    def work() -> None:
        write_page(arguments.experiments, arguments.out)
        print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, for any browser")

    command.guard(work, debug=arguments.debug)


if __name__ == "__main__":
    main()
