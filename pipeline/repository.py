"""The repository that a stage runs in: where it is, what dvc.yaml and dvc.lock say, locks."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssda.sections import read_yaml


def root() -> Path:
    """The main repository: where DVC works in a temporary folder, DVC_ROOT leads back to it."""
    return Path(os.environ.get("DVC_ROOT") or git("rev-parse", "--show-toplevel")).resolve()


def git(*arguments: str) -> str:
    """Output of a git command; empty where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def stages(folder: Path) -> dict[str, Any]:
    """The stages in a folder's dvc.yaml; empty without one."""
    path = folder / "dvc.yaml"
    found = read_yaml(path)["stages"] if path.exists() else {}
    return {name: stage.get("do", stage) for name, stage in found.items()}  # do: one a source


def dependencies(stage: dict[str, Any]) -> list[str]:
    """Paths that a stage of dvc.yaml depends on."""
    return [dep if isinstance(dep, str) else next(iter(dep)) for dep in stage.get("deps", [])]


def recorded_outputs(folder: Path) -> dict[str, str]:
    """{path: MD5} of the files that a folder's dvc.lock has as outputs."""
    path = folder / "dvc.lock"
    entries = (read_yaml(path).get("stages") or {}).values() if path.exists() else []
    return {out["path"]: out["md5"] for entry in entries for out in entry.get("outs", [])}


def digest(text: str, paths: Mapping[str, Path]) -> str:
    """SHA-256 of a text and of the names and contents of files, and of all files in folders."""
    total = hashlib.sha256(text.encode())
    for name, path in paths.items():
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(os.fsencode(f"\n{name}\n{file.relative_to(path)}\n"))
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


@contextmanager
def locked(path: Path, what: str = "", patience: float | None = None) -> Generator[None]:
    """Holds a lock between processes, where the system has file locks.

    The lock is the process's: it falls when that dies, however it does.

    Args:
        path: of the lock's file, which says who holds it.
        what: for messages: what the holder does.
        patience: seconds to wait for another holder; None: as long as it takes, without a word.

    Raises:
        ValueError: another process still holds the lock; the message says which.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if patience is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            end, told = time.monotonic() + patience, patience == 0
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    file.seek(0)
                    holder = f"{file.read().strip() or 'another process'} {what}"
                    if time.monotonic() >= end:
                        raise ValueError(f"{holder}; stop it first (lock: {path})") from error
                    if not told:
                        print(f"waiting up to {patience:.0f} s: {holder}", file=sys.stderr)
                        told = True
                    time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
