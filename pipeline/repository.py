"""The repository that a stage runs in: where it is, what git, dvc.yaml and dvc.lock say."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssda.sections import read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo

CODE = Path(__file__).resolve().parents[1]
"""The folder of the code that runs, which need not be the working directory."""


@dataclass(frozen=True)
class Origin:
    """Where a run's code and parameters come from.

    Attributes:
        commit: the git commit that it started from.
        experiment: name of the DVC experiment; empty for a plain `dvc repro`.
        revision: the git revision that holds what came of it; empty for the workspace.
    """

    commit: str
    experiment: str = ""
    revision: str = ""

    @classmethod
    def of_workspace(cls) -> Origin:
        """What DVC tells the stages that it runs."""
        commit = os.environ.get("DVC_EXP_BASELINE_REV") or git("rev-parse", "HEAD")
        return cls(commit, os.environ.get("DVC_EXP_NAME", ""))

    def code_differs(self) -> bool:
        """Whether the code is not that of the commit."""
        if self.revision:
            return bool(git("diff", "--name-only", self.commit, self.revision, "--", "*.py"))
        return bool(git("status", "--porcelain", "--", "*.py"))


def root() -> Path:
    """The main repository: the nearest folder that is DVC's; without one git's, or this one.

    Where DVC works in a temporary folder, DVC_ROOT leads back to it.
    """
    if given := os.environ.get("DVC_ROOT"):
        return Path(given).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir():
            return folder
    return Path(git("rev-parse", "--show-toplevel")).resolve()


def git(*arguments: str) -> str:
    """Output of a git command; empty where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml.

    Attributes:
        deps: paths that it depends on.
        outs: paths that it leaves.
        params: keys of params.yaml that it reads.
    """

    deps: list[str]
    outs: list[str]
    params: list[str]


def stages(folder: Path) -> dict[str, Stage]:
    """The stages in a folder's dvc.yaml; empty without one."""

    def paths(stage: dict[str, Any], *kinds: str) -> list[str]:
        entries = [entry for kind in kinds for entry in stage.get(kind, [])]
        return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]

    path = folder / "dvc.yaml"
    found = read_yaml(path)["stages"] if path.exists() else {}
    found = {name: stage.get("do", stage) for name, stage in found.items()}  # do: one a source
    return {
        name: Stage(
            paths(stage, "deps"), paths(stage, "outs", "metrics", "plots"), paths(stage, "params")
        )
        for name, stage in found.items()
    }


def code_of(folder: Path) -> list[str]:
    """The Python files that the stages in a folder's dvc.yaml depend on."""
    deps = {dep for stage in stages(folder).values() for dep in stage.deps}
    return sorted(dep for dep in deps if dep.endswith(".py"))


def recorded_outputs(folder: Path) -> dict[str, str]:
    """{path: MD5} of the files that a folder's dvc.lock has as outputs."""
    path = folder / "dvc.lock"
    entries = (read_yaml(path).get("stages") or {}).values() if path.exists() else []
    return {out["path"]: out["md5"] for entry in entries for out in entry.get("outs", [])}


def outdated(base: str, revision: str = "workspace") -> dict[str, list[str]]:
    """{stage: what dvc.lock does not have as it is}, for every stage, also those in order.

    Data that are not here are passed over, but a stage must have read what the stage before it
    wrote. A file that is missing here is no data if base has it in git.

    Args:
        base: a git revision.
        revision: the one that is looked at.

    Raises:
        ValueError: DVC cannot read its files.
    """
    found: dict[str, list[str]] = {}
    with _dvc() as repo, repo.switch(revision):
        written = {out.fs_path: out.hash_info for stage in repo.index.stages for out in stage.outs}
        for stage in repo.index.stages:
            lines = ["changed command"] if stage.changed_stage() else []
            for file in [*stage.deps, *stage.outs]:
                before, now = file.hash_info, written.get(file.fs_path, file.hash_info)
                for path, how in file.status().items():
                    if isinstance(how, dict):  # parameters
                        lines += [f"{path}: {name} {change}" for name, change in how.items()]
                    elif how not in ("deleted", "not in cache") or git("ls-tree", base, path):
                        lines.append(f"{path} {how}")
                    elif before and before != now:
                        lines.append(f"{path} written anew")
            found.setdefault(getattr(stage, "name", None) or stage.addressing, []).extend(lines)
    return found


def unchanged(stage: str) -> bool:
    """Whether dvc.lock has a stage's command, params, inputs and outputs as they are here."""
    try:
        with _dvc() as repo:
            return not repo.status(targets=[stage])
    except ValueError:  # no repository of DVC, or none that it can read
        return False


def experiments() -> list[Origin]:
    """DVC's experiments in this repository, the oldest first.

    Raises ValueError where DVC does not answer.
    """
    with _dvc() as repo:
        listed: dict[str, list[tuple[str, str]]] = repo.experiments.ls(all_commits=True)
    found = [Origin(commit, *pair) for commit, pairs in listed.items() for pair in pairs]
    return sorted(found, key=lambda origin: git("show", "-s", "--format=%cI", origin.revision))


def extract(revision: str, paths: Iterable[str], folder: Path) -> None:
    """Write files and folders of a revision into a folder, but for those that it does not have.

    Raises ValueError where neither DVC's cache nor its remote has what they hold.
    """
    from dvc_data.index import DataIndexDirError

    with _dvc() as repo, repo.switch(revision):
        files = repo.dvcfs
        for path in paths:
            if not files.exists(path):
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                files.get(path, str(folder / path), recursive=True)
            except (FileNotFoundError, DataIndexDirError) as error:
                raise ValueError(
                    f"DVC has not all of {path}: `dvc exp pull` or `dvc pull` first"
                ) from error


def cached(files: Mapping[str, str]) -> dict[str, Path]:
    """Where files lie in DVC's cache; what it lacks is fetched from DVC's remote, if there is one.

    Args:
        files: {name: MD5}.

    Raises:
        ValueError: DVC has one of them no more.
    """
    with _dvc() as repo:
        from dvc.config import NoRemoteError
        from dvc_data.hashfile.hash_info import HashInfo

        cache, remote = repo.cache.local, None
        with suppress(NoRemoteError):
            remote = repo.cloud.get_remote_odb()
        lacking = {name: md5 for name, md5 in files.items() if not cache.exists(md5)}
        for name, md5 in lacking.items():
            if remote is None or not remote.exists(md5):
                raise ValueError(f"{name} (MD5 {md5}) is neither in DVC's cache nor in its remote")
        if lacking:
            repo.cloud.pull([HashInfo("md5", md5) for md5 in lacking.values()])
        return {name: Path(cache.oid_to_path(md5)) for name, md5 in files.items()}


def is_tracked(path: Path) -> bool:
    """Whether a path leads to the same data from everywhere, or git or DVC has what lies there.

    True as well outside of a repository of DVC.
    """
    if path.is_absolute() or not (root() / ".dvc").is_dir() or git("ls-files", "--", str(path)):
        return True
    with _dvc() as repo:
        outs = [Path(out.fs_path) for out in repo.index.outs]
    full = path.resolve()
    return any(full.is_relative_to(out) or out.is_relative_to(full) for out in outs)


@contextmanager
def _dvc() -> Generator[Repo]:
    """DVC's view of this repository; what DVC and git raise becomes a ValueError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        with Repo() as repo:
            yield repo
    except (DvcException, SCMError) as error:
        raise ValueError(f"DVC: {error}") from error


def file_md5(path: Path) -> str:
    """MD5 of a file, as DVC names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def digest(text: str, paths: Mapping[str, Path]) -> str:
    """SHA-256 of a text and of the names and contents of files, and of all files in folders."""
    total = hashlib.sha256(text.encode())
    for name, path in paths.items():
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(os.fsencode(f"\n{name}\n{file.relative_to(path)}\n"))
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
