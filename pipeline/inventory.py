"""Stage inventory: names and fingerprints of raw files, so that `convert` reruns when they change.

One stage a source, since DVC joins each to what makes its raw set; each looks at the target too.
Cheap enough to run at every `dvc repro`: only files that are new or were touched are opened. What
training would refuse is refused here, before anything is done.
"""

from __future__ import annotations

import hashlib
import json
import os
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import time_ns
from typing import Any

from pipeline import command
from pipeline.paths import INVENTORY
from pipeline.repository import root
from pipeline.splits import RawSplit, raw_splits
from ssda.datasets.layouts import find_images, find_labels
from ssda.files import fingerprint, write_text
from ssda.params import Params, load_params

SEEN = Path(".ssda/fingerprints")
"""What was seen of the raw files, of this clone alone; may be deleted."""
SETTLED = 2_000_000_000
"""Nanoseconds after which a further change of a file shows in its times."""


def count_files(raw: RawSplit) -> dict[str, int | str]:
    """Number of raw files, their bytes, and a digest of layout, classes, names and contents.

    Equal sets have equal digests, wherever and whenever they were copied.

    Raises ValueError where the split has no images, and what `find_labels` raises.
    """
    images = find_images(raw.layout, raw.root, raw.split)
    paths = [image.path for image in images]
    if raw.with_labels:
        labels = find_labels(raw.layout, raw.root, raw.split, images)
        paths += [label for label, image in labels.items() if image is not None]
    prints = fingerprints(raw, sorted(paths))
    facts = [repr(raw.layout), repr(raw.space), *(f"{path}\0{prints[path][1]}" for path in prints)]
    return {
        "files": len(prints),
        "bytes": sum(size for size, _ in prints.values()),
        "sha256": hashlib.sha256("\0".join(facts).encode()).hexdigest(),
    }


def fingerprints(raw: RawSplit, paths: list[str]) -> dict[str, tuple[int, str]]:
    """{path: (bytes, fingerprint)} of raw files, of which only new and touched ones are opened."""
    from filelock import FileLock

    kept = root() / SEEN / f"{raw.name.replace('/', '_')}.json"
    with FileLock(kept.with_suffix(".lock")), ThreadPoolExecutor() as pool:
        known: dict[str, list[Any]] = {}
        with suppress(FileNotFoundError, ValueError):
            known = json.loads(kept.read_text(encoding="utf-8"))
        full = {path: f"{raw.root}/{path}" for path in paths}  # as Path it takes twice as long
        state = {path: _state(full[path]) for path in paths}
        new = [path for path in paths if known.get(path, [])[:-1] != state[path]]
        prints: dict[str, str] = {path: entry[-1] for path, entry in known.items()}
        prints.update(zip(new, pool.map(fingerprint, [full[path] for path in new]), strict=True))
        if new or len(known) != len(paths):
            before = time_ns() - SETTLED
            settled = [path for path in paths if max(state[path][1:3]) < before]
            write_text(kept, json.dumps({path: [*state[path], prints[path]] for path in settled}))
    return {path: (state[path][0], prints[path]) for path in paths}


def _state(path: str) -> list[int]:
    """Bytes of a file, times of its last changes in nanoseconds, place on the disk."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def inventory(params: Params, source: str) -> None:
    """Write data/inventory/<source>.json for a source and the target, unless it says so already.

    Inventories of sources that are no longer in the parameters are removed.

    Raises ValueError for a source that is not in the parameters, and what `check_places` raises.
    """
    from pipeline.checks.preflight import check_places

    if source not in params.sources:
        raise ValueError(f"source {source!r}: allowed are {', '.join(params.sources)}")
    check_places(params)
    others = {f"sources/{name}" for name in params.sources} - {f"sources/{source}"}
    content = {raw.name: count_files(raw) for raw in raw_splits(params) if raw.name not in others}
    text = json.dumps(content, indent=2) + "\n"
    path = INVENTORY / f"{source}.json"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    for path in INVENTORY.glob("*.json"):
        if path.stem not in params.sources:
            path.unlink()


def main() -> None:
    """The command line: `python -m pipeline.inventory SOURCE`."""
    options = command.parser(__doc__)
    options.add_argument("source", help="a name in params.sources")

    def work(arguments: Namespace) -> None:
        from pipeline.checks.parameters import telling_how_to_take_back
        from pipeline.checks.preflight import preflight

        with telling_how_to_take_back(arguments.params):
            params = load_params(arguments.params)
            preflight(params)
        inventory(params, arguments.source)

    command.start(options, work)


if __name__ == "__main__":
    main()
