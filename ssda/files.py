"""Files: found and told apart, and written so that a reader sees all of the old or of the new."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLOCK = 4096
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, ends of lines, and what stands for bytes that are not UTF-8."""


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
        place = folder if folder.endswith("/") else f"{folder}/"
        folders[:] = [name for name in folders if enters(place + name)]
        yield from (place + name for name in files)


def check_names(folder: Path | str, paths: Iterable[str]) -> None:
    """Raise ValueError for paths that neither a log nor DVC's files can hold.

    Those are names that are not UTF-8, as old archives leave them, and control characters.
    """
    bad = [path for path in paths if UNWRITABLE.search(path)]
    if bad:
        more = f" and {len(bad) - 1} more" if bad[1:] else ""
        why = "not UTF-8" if re.search("[\ud800-\udfff]", bad[0]) else "control characters"
        raise ValueError(f"{folder}: {bad[0]!r}{more}: {why} in a name: rename it")


def fingerprint(path: Path | str) -> str:
    """A digest of a file's size and of its first, middle and last 4 KiB: all of it up to 12 KiB.

    The end of a PNG holds a checksum of all its pixels, that of zlib.
    """
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        for start in sorted({0, max(0, size - BLOCK) // 2, max(0, size - BLOCK)}):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


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
