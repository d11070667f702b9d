"""What a stage logged, as data: an output that DVC caches, and a part of the state of training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.repository import stages
from ssda.files import write_text

JOURNALS = Path("metrics/logged")


@dataclass
class Journal:
    """What a stage logged.

    Attributes:
        stage: its name in dvc.yaml.
        metrics: {metric: {step: value}}.
        artifacts: {file: folder among the run's artifacts}.
    """

    stage: str
    metrics: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    artifacts: dict[str, str] = field(default_factory=dict[str, str])

    def content(self) -> dict[str, Any]:
        """A copy as JSON has it, which knows no numbers as keys; equal journals are equal texts."""
        points = {name: sorted(values.items()) for name, values in self.metrics.items()}
        return {"stage": self.stage, "metrics": points, "artifacts": dict(self.artifacts)}


def from_content(content: dict[str, Any]) -> Journal:
    """The journal that `Journal.content` copied."""
    points = {name: dict(values) for name, values in content["metrics"].items()}
    return Journal(content["stage"], points, content["artifacts"])


def journal_path(stage: str) -> Path:
    """Where a stage leaves its journal in a workspace."""
    return JOURNALS / f"{stage}.json"


def read_journal(path: Path) -> Journal:
    """The journal that a stage left."""
    return from_content(json.loads(path.read_text(encoding="utf-8")))


def write_journal(journal: Journal, workspace: Path) -> None:
    """Leave a stage's journal in a workspace."""
    text = json.dumps(journal.content(), sort_keys=True) + "\n"
    write_text(workspace / journal_path(journal.stage), text)


def logging_stages(workspace: Path) -> list[str]:
    """The stages of a workspace's dvc.yaml that leave a journal, in their order."""
    found = stages(workspace).items()
    return [name for name, stage in found if journal_path(name).as_posix() in stage.outs]


def metric_prefix(stage: str) -> str:
    """What a stage's metrics begin with."""
    return "eval/" if stage == "evaluate" else f"{stage}/"
