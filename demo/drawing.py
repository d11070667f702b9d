"""Canvas, camera and textures: what every object of a street scene is drawn with.

Points are in pixels of the finished picture (x right, y down), in metres on a street (x right,
y up from the ground, z ahead of the camera), or in metres on a flat figure (x right, y up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from ssda.labels import CITYSCAPES_IDS

OVERSAMPLING = 2
"""Canvas pixels per picture pixel and axis; the picture is the area average."""

LABEL_IDS = {name: raw for raw, name in CITYSCAPES_IDS.items()} | {
    "ego vehicle": 1,
    "static": 4,
    "dynamic": 5,
}
"""Class name -> Cityscapes label id; the last three are void."""

Colour = tuple[int, int, int]
Texture = Callable[[int, int], np.ndarray]
"""Maps a height and width to an RGB block (height, width, 3)."""
Paint = Colour | Texture
Points = Sequence[Sequence[float]] | np.ndarray
Point = Sequence[float] | np.ndarray
Choice = TypeVar("Choice")


class Canvas:
    """Picture, label ids and distances (metres) that are painted together, far to near."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Start black, void and infinitely near; size is the picture's (H, W)."""
        height, width = size[0] * OVERSAMPLING, size[1] * OVERSAMPLING
        self.image = np.zeros((height, width, 3), np.uint8)
        self.labels = np.zeros((height, width), np.uint8)
        self.depth = np.zeros((height, width), np.float32)

    def fill(
        self, points: Points, paint: Paint, label: int | None, depth: float, opacity: float = 1.0
    ) -> None:
        """Fill the polygon (N, 2) in pixels; label None leaves labels and distances alone."""
        corners = subpixels(points)
        if callable(paint) or opacity < 1:
            window = self.window(corners)
            if window is None:
                return
            rows, columns, moved = window
            region = self.image[rows, columns]
            height, width = region.shape[:2]
            mask = np.zeros((height, width), np.uint8)
            cv2.fillPoly(mask, [moved], 1, shift=4)
            block = paint(height, width) if callable(paint) else np.array(paint)
            inside = mask.astype(bool)
            mixed = np.broadcast_to(block, region.shape)[inside] * opacity
            region[inside] = mixed if opacity == 1 else mixed + (1 - opacity) * region[inside]
        else:
            cv2.fillPoly(self.image, [corners], paint, shift=4)
        if label is not None:
            cv2.fillPoly(self.labels, [corners], label, shift=4)
            cv2.fillPoly(self.depth, [corners], depth, shift=4)

    def warp(
        self, texture: np.ndarray, corners: np.ndarray, label: int, depth: float, opacity: float = 1
    ) -> None:
        """Paint an RGB texture onto the quadrilateral (4, 2) in pixels, clockwise from top left."""
        window = self.window(subpixels(corners))
        if window is None:
            return
        rows, columns, moved = window
        height, width = texture.shape[:2]
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        matrix = cv2.getPerspectiveTransform(source, moved.astype(np.float32) / 16)
        region = self.image[rows, columns]
        mask = np.zeros(region.shape[:2], np.uint8)
        cv2.fillPoly(mask, [moved], 1, shift=4)
        inside = mask.astype(bool)
        size = mask.shape[::-1]
        warped = cv2.warpPerspective(texture, matrix, size, borderMode=cv2.BORDER_REPLICATE)[inside]
        region[inside] = (
            warped if opacity == 1 else opacity * warped + (1 - opacity) * region[inside]
        )
        self.labels[rows, columns][inside] = label
        self.depth[rows, columns][inside] = depth

    def window(self, corners: np.ndarray) -> tuple[slice, slice, np.ndarray] | None:
        """The rows and columns that a polygon touches, and its corners seen from there."""
        height, width = self.labels.shape
        (left, top), (right, bottom) = corners.min(0) // 16, corners.max(0) // 16 + 2
        left, right = max(left, 0), min(right, width)
        top, bottom = max(top, 0), min(bottom, height)
        if right <= left or bottom <= top:
            return None
        moved = corners - 16 * np.array([left, top], np.int32)
        return slice(top, bottom), slice(left, right), moved


def subpixels(points: Points) -> np.ndarray:
    """Picture pixels (N, 2) -> sixteenths of a canvas pixel, int32, as OpenCV wants them."""
    # Far outside the picture the exact place is of no matter, but it must fit OpenCV's integers.
    scaled = np.asarray(points, float) * (16 * OVERSAMPLING) - 8
    return np.rint(scaled).clip(-128000, 128000).astype(np.int32)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks straight along the street.

    Focal length, centre (column of the vanishing point) and horizon (its row) are in pixels,
    the camera's height and lateral position in metres.
    """

    focal: float = 1.0
    centre: float = 0.0
    horizon: float = 0.0
    height: float = 1.5
    x: float = 0.0

    def project(self, points: Points) -> np.ndarray:
        """Street points (N, 3) in metres -> picture points (N, 2) in pixels."""
        x, y, z = np.asarray(points, float).T
        scale = self.focal / np.maximum(z, 1.0)
        return np.stack(
            [self.centre + (x - self.x) * scale, self.horizon + (self.height - y) * scale], 1
        )

    def nearest(self, x: float, width: int) -> float:
        """The distance from which a point at lateral position x is well inside the picture."""
        return abs(x - self.x) * self.focal / (0.44 * width)


@dataclass(frozen=True)
class Pen:
    """Draws a flat figure that stands upright on the street, in metres."""

    canvas: Canvas
    origin: np.ndarray
    scale: float
    depth: float
    label: int

    def fill(
        self, points: Points, paint: Paint, opacity: float = 1.0, detail: bool = False
    ) -> None:
        """Fill a polygon (N, 2); a detail lies on what is drawn already and keeps its label."""
        pixels = self.origin + np.asarray(points, float) * (self.scale, -abs(self.scale))
        self.canvas.fill(pixels, paint, None if detail else self.label, self.depth, opacity)


@dataclass
class Street:
    """What drawing an object needs: canvas, camera, chance, and how unlike the game it is.

    `structural` and `photometric` are the strengths of the look, 0 for the game.
    """

    canvas: Canvas
    camera: Camera
    rng: np.random.Generator
    structural: float
    photometric: float

    def foreign(self) -> bool:
        """Whether this object takes the city's form rather than the game's."""
        return bool(self.rng.random() < self.structural)

    def between(self, game: tuple[float, float], city: tuple[float, float]) -> float:
        """A uniform number from a range that moves from the game's to the city's."""
        low, high = np.array(game) + self.structural * (np.array(city) - game)
        return float(self.rng.uniform(low, high))

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def surface(self, colour: Colour, contrast: float = 0.12, grain: int = 4) -> Paint:
        """Flat colour in the game, stained in the city."""
        return rough(self.rng, colour, contrast, grain) if self.foreign() else colour

    def pen(self, x: float, z: float, name: str) -> Pen:
        """A pen for an object of the named class that stands at (x, z), facing left or right."""
        scale = self.camera.focal / z * self.pick((-1.0, 1.0))
        origin = self.camera.project([(x, 0.0, z)])[0]
        return Pen(self.canvas, origin, scale, z, LABEL_IDS[name])

    def solid(self, points: Points, paint: Paint, label: int | None, opacity: float = 1.0) -> None:
        """Fill a polygon (N, 3) of the street."""
        depth = float(np.mean(np.asarray(points, float)[:, 2]))
        self.canvas.fill(self.camera.project(points), paint, label, depth, opacity)

    def shadow(self, x: float, z: float, width: float, length: float) -> None:
        """Darken the ground under a thing; nothing in the game."""
        centre = np.array([x, 0.0, z + length / 2])
        outline = oval((0, 0), (0.62 * width, 0.55 * length))
        points = centre + np.stack([outline[:, 0], 0 * outline[:, 0], outline[:, 1]], 1)
        self.solid(points, (8, 8, 10), None, min(0.9, 0.6 * self.photometric))


def oval(centre: Point, radii: Point, corners: int = 20) -> np.ndarray:
    """An ellipse as a polygon (corners, 2)."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    circle = np.array([np.cos(angles), np.sin(angles)]).T
    return np.asarray(centre) + circle * radii


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """A rectangle as a polygon."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def limb(start: Point, end: Point, width: float) -> np.ndarray:
    """A thick line as a polygon (4, 2)."""
    first, second = np.asarray(start, float), np.asarray(end, float)
    along = (second - first) / max(float(np.linalg.norm(second - first)), 1e-6)
    across = np.array([-along[1], along[0]]) * width / 2
    return np.stack([first + across, second + across, second - across, first - across])


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    red, green, blue = (int(min(255, value * factor)) for value in colour)
    return red, green, blue


def blotches(rng: np.random.Generator, height: int, width: int, grain: int) -> np.ndarray:
    """Smooth noise (height, width) of unit variance or less, with spots of about `grain` pixels."""
    coarse = rng.normal(size=(height // grain + 2, width // grain + 2)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def rough(rng: np.random.Generator, colour: Colour, contrast: float, grain: int) -> Texture:
    """A stained surface."""

    def texture(height: int, width: int) -> np.ndarray:
        noise = blotches(rng, height, width, grain)[..., None]
        return np.clip(np.array(colour) * (1 + contrast * noise), 0, 255)

    return texture


def striped(colours: Sequence[Colour], period: int, upright: bool = False) -> Texture:
    """Stripes of `period` canvas pixels."""

    def texture(height: int, width: int) -> np.ndarray:
        rows = np.arange(width if upright else height) // period % len(colours)
        lines = np.array(colours)[rows]
        lines = lines[None] if upright else lines[:, None]
        return np.broadcast_to(lines, (height, width, 3)).astype(float)

    return texture


def checked(colours: Sequence[Colour], period: int) -> Texture:
    """A chequered pattern with squares of `period` canvas pixels."""

    def texture(height: int, width: int) -> np.ndarray:
        rows, columns = np.arange(height) // period, np.arange(width) // period
        return np.array(colours, float)[(rows[:, None] + columns) % len(colours)]

    return texture
