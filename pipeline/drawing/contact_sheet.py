"""What makes a folder of predictions readable: a page of all pictures, the classes, a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.drawing.figures import legend, save
from pipeline.drawing.html import rendered
from ssda.files import write_json, write_text
from ssda.labels import LabelSpace

TEMPLATE = Path(__file__).with_suffix(".html")


def write_contact_sheet(
    out: Path, images: Sequence[str], videos: Sequence[str], space: LabelSpace
) -> None:
    """Write index.html, classes.json and legend.png.

    Args:
        out: the folder of the predictions.
        images: names of those that have pictures in it, as in NAME_overlay.png.
        videos: names of those that have an overlay, NAME_overlay.webm.
        space: the classes.
    """
    classes = [
        {"id": i, "name": name, "colour": list(colour)}
        for i, (name, colour) in enumerate(zip(space.names, space.colours, strict=True))
    ]
    write_json(out / "classes.json", classes)
    save(legend(space), out / "legend.png")
    page = rendered(TEMPLATE, images=images, videos=videos, classes=classes)
    write_text(out / "index.html", page)
