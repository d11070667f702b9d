"""Writing files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def walk(top: str, enters: Callable[[str], object] = bool) -> Generator[str]:
    """Paths of the files below a folder, at any depth, also behind links; none without a folder.

    `enters` says of a folder below the top whether it is looked into.

    Raises ValueError where links lead to a folder twice, OSError where a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    seen: dict[tuple[int, int], str] = {}
    if not os.path.isdir(top):
        return
    for folder, folders, files in os.walk(top, onerror=fail, followlinks=True):
        status = os.stat(folder)
        before = seen.setdefault((status.st_dev, status.st_ino), folder)
        if before != folder:
            raise ValueError(f"{folder}: a link to {before}, whose files would come twice")
        folders[:] = [name for name in folders if enters(_joined(folder, name))]
        yield from (_joined(folder, name) for name in files)


def _joined(folder: str, name: str) -> str:
    return os.path.join(folder, name).replace(os.sep, "/")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    with naming(path):
        try:
            write(partial)
            _sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Inside, an OSError that names no file, such as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends."""
    write_atomically(path, lambda partial: partial.write_bytes(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; NaN is an error, for it is no JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
