"""What stands on a street: people, vehicles, poles, trees, facades. Each has two forms.

The *game* form is flat, saturated and simple; the *city* form differs in outline, colours and
texture. `Street.foreign` decides object by object, so the structural strength is the share of
objects with the city's form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from demo.drawing import (
    LABEL_IDS,
    OVERSAMPLING,
    Colour,
    Paint,
    Pen,
    Street,
    blotches,
    box,
    checked,
    limb,
    oval,
    rough,
    shade,
    striped,
)

SKIN: tuple[Colour, ...] = ((236, 190, 160), (200, 150, 115), (140, 95, 70), (250, 210, 185))
GLASS: Colour = (40, 52, 66)
DARK: Colour = (28, 28, 32)
GAME_BODIES: tuple[Colour, ...] = (
    (210, 30, 35),
    (30, 80, 200),
    (235, 190, 30),
    (30, 150, 80),
    (235, 235, 235),
    (230, 110, 20),
)
CITY_BODIES: tuple[Colour, ...] = (
    (206, 210, 214),
    (56, 58, 66),
    (132, 138, 146),
    (244, 242, 234),
    (134, 52, 60),
    (62, 92, 140),
    (178, 164, 128),
)
GAME_CLOTHES: tuple[Colour, ...] = (
    (220, 40, 50),
    (40, 90, 220),
    (240, 200, 40),
    (240, 120, 30),
    (150, 50, 190),
)
CITY_CLOTHES: tuple[Colour, ...] = (
    (66, 70, 90),
    (176, 144, 104),
    (232, 222, 204),
    (120, 138, 86),
    (168, 70, 78),
    (92, 128, 172),
)


# People and two-wheelers -----------------------------------------------------------------------


def clothing(street: Street, foreign: bool) -> Paint:
    """Plain bright cloth in the game; muted stripes, checks or stained cloth in the city."""
    if not foreign:
        return street.pick(GAME_CLOTHES)
    first, second = street.pick(CITY_CLOTHES), street.pick(CITY_CLOTHES)
    period = int(street.rng.integers(2, 5))
    return street.pick(
        (
            rough(street.rng, first, 0.2, 3),
            striped((first, shade(second, 1.5)), period),
            checked((first, shade(first, 0.6)), period),
        )
    )


def head(pen: Pen, street: Street, x: float, y: float, helmet: Paint | None = None) -> None:
    """A head with hair, a hat or a helmet."""
    skin = street.pick(SKIN)
    pen.fill(oval((x, y), (0.15, 0.19)), skin)
    top = helmet or street.pick(((50, 34, 24), (30, 26, 26), (150, 110, 60), (110, 110, 112)))
    half = oval((x, y + 0.05), (0.17, 0.17))
    pen.fill(half[half[:, 1] >= y + 0.04], top)


def person(street: Street, x: float, z: float) -> None:
    """A person who stands or walks."""
    foreign, pen = street.foreign(), street.pen(x, z, "person")
    size = float(street.rng.uniform(0.93, 1.12))
    pen = Pen(pen.canvas, pen.origin, pen.scale * size, pen.depth, pen.label)
    stride = float(street.rng.uniform(0.08, 0.28))
    trousers: Paint = street.pick(((36, 40, 62), (60, 56, 52), (82, 84, 92)))
    if not foreign:
        trousers = street.pick(((30, 50, 130), (110, 70, 40), (40, 40, 44)))
    for foot in (-stride, stride):
        pen.fill(limb((foot * 0.35, 0.9), (foot, 0.03), 0.2), trousers)
        pen.fill(box(foot - 0.1, 0, foot + 0.16, 0.09), DARK)
    cloth = clothing(street, foreign)
    hem = street.between((0.82, 0.86), (0.4, 0.85))
    flare = 0.22 + 0.14 * (0.85 - hem)
    for side in (-1, 1):
        hand = (side * street.rng.uniform(0.28, 0.45), 0.82)
        pen.fill(limb((side * 0.2, 1.4), hand, 0.14), cloth)
        pen.fill(oval(hand, (0.07, 0.07), 8), street.pick(SKIN))
    pen.fill(
        [(-flare, hem), (flare, hem), (0.27, 1.38), (0.12, 1.5), (-0.12, 1.5), (-0.27, 1.38)], cloth
    )
    if foreign and street.rng.random() < 0.5:
        bag = rough(street.rng, street.pick(CITY_CLOTHES), 0.2, 3)
        pen.fill(street.pick((oval((-0.3, 1.15), (0.16, 0.26)), box(0.3, 0.5, 0.58, 0.8))), bag)
    head(pen, street, 0.04, 1.63)


def wheel(pen: Pen, x: float, radius: float, solid: bool) -> None:
    """A tyre; a bicycle's lets the street shine through between its spokes."""
    pen.fill(
        oval((x, radius), (radius, radius)), DARK if solid else (70, 70, 74), 1.0 if solid else 0.4
    )
    if solid:
        pen.fill(oval((x, radius), (0.5 * radius, 0.5 * radius)), (150, 150, 155), detail=True)
    else:
        rim = oval((x, radius), (radius - 0.04, radius - 0.04), 12)
        for start, end in zip(rim, np.roll(rim, -1, 0), strict=True):
            pen.fill(limb(start, end, 0.1), DARK)
        for start, end in zip(rim[:6:2], rim[6::2], strict=True):
            pen.fill(limb(start, end, 0.03), (170, 170, 175), detail=True)


def bicycle(street: Street, x: float, z: float, ridden: bool = False) -> None:
    """A bicycle, with or without a rider: a racer in the game, a low city bicycle otherwise."""
    foreign, pen = street.foreign(), street.pen(x, z, "bicycle")
    pen = Pen(pen.canvas, pen.origin, pen.scale * 1.12, pen.depth, pen.label)
    street.shadow(x, z, 1.6, 0.4)
    frame: Paint = street.pick(GAME_CLOTHES)
    if foreign:
        frame = street.pick(((40, 42, 44), (60, 78, 70), (104, 52, 46), (150, 148, 140)))
    for hub in (-0.58, 0.58):
        wheel(pen, hub, 0.38, solid=False)
    crank, saddle, bar = (-0.05, 0.36), (-0.25, 0.92), (0.4, 0.95)
    joints = [
        ((-0.58, 0.38), crank),
        (crank, saddle),
        ((-0.58, 0.38), (-0.2, 0.78)),
        (bar, (0.58, 0.38)),
    ]
    joints += (
        [(crank, (0.42, 0.5))] if foreign else [(crank, (0.42, 0.82)), ((-0.2, 0.8), (0.42, 0.85))]
    )
    for start, end in joints:
        pen.fill(limb(start, end, 0.1), frame)
    pen.fill(limb((-0.42, 0.95), (-0.1, 0.95), 0.1), DARK)
    pen.fill(limb(bar, (0.28, 1.1), 0.08), DARK)
    if foreign:
        pen.fill(box(0.4, 0.72, 0.75, 1.0), rough(street.rng, (120, 96, 66), 0.25, 2))
        pen.fill(limb((-0.85, 0.72), (-0.35, 0.76), 0.1), DARK)
    if ridden:
        rider(street, pen, (-0.25, 0.95), (0.34, 1.1), (0.02, 0.25))


def motorcycle(street: Street, x: float, z: float, ridden: bool = False) -> None:
    """A motorcycle, with or without a rider: a sports machine in the game, a scooter otherwise."""
    foreign, pen = street.foreign(), street.pen(x, z, "motorcycle")
    pen = Pen(pen.canvas, pen.origin, pen.scale * 1.1, pen.depth, pen.label)
    street.shadow(x, z, 1.8, 0.6)
    radius = 0.27 if foreign else 0.36
    paint: Paint = street.pick(GAME_BODIES)
    if foreign:
        paint = rough(street.rng, street.pick(CITY_BODIES), 0.12, 4)
    for hub in (-0.68, 0.68):
        wheel(pen, hub, radius, solid=True)
    if foreign:
        pen.fill([(-0.95, 0.35), (-0.1, 0.25), (0.0, 0.75), (-0.9, 0.85)], paint)
        pen.fill([(-0.1, 0.2), (0.5, 0.2), (0.42, 0.36), (-0.1, 0.36)], DARK)
        pen.fill([(0.36, 0.25), (0.72, 0.3), (0.52, 1.15), (0.32, 1.15)], paint)
        pen.fill(box(-0.95, 0.82, 0.0, 0.95), DARK)
    else:
        pen.fill(
            [(-0.7, 0.3), (0.3, 0.22), (0.72, 0.5), (0.62, 0.98), (0.2, 0.95), (-0.3, 0.7)], paint
        )
        pen.fill([(-1.0, 0.9), (-0.75, 0.65), (0.0, 0.72), (0.05, 0.85)], DARK)
        pen.fill(limb((-0.9, 0.35), (-0.1, 0.28), 0.14), (190, 190, 195))
        pen.fill(oval((0.15, 0.45), (0.2, 0.17)), (90, 90, 95), detail=True)
    pen.fill(limb((0.42, 1.0), (0.25, 1.18), 0.1), DARK)
    pen.fill(oval((0.62, 0.92), (0.12, 0.12)), (255, 244, 190))
    if ridden:
        rider(street, pen, (-0.35, 0.95), (0.3, 1.12), (0.1, 0.3))


def rider(
    street: Street,
    pen: Pen,
    seat: tuple[float, float],
    bar: tuple[float, float],
    foot: tuple[float, float],
) -> None:
    """Someone who sits on the two-wheeler that the pen has drawn."""
    foreign = street.foreign()
    pen = Pen(pen.canvas, pen.origin, pen.scale, pen.depth, LABEL_IDS["rider"])
    cloth = clothing(street, foreign)
    trousers: Paint = (44, 46, 56) if foreign else street.pick(((30, 50, 130), (40, 40, 44)))
    lean = street.between((0.2, 0.3), (0.0, 0.2))
    knee = (seat[0] + 0.48, seat[1] - 0.18)
    shoulder = np.array((seat[0] + lean, seat[1] + 0.62))
    pen.fill(limb(seat, knee, 0.22), trousers)
    pen.fill(limb(knee, foot, 0.18), trousers)
    pen.fill(limb(foot, (foot[0] + 0.2, foot[1]), 0.12), DARK)
    pen.fill(limb((seat[0] - 0.04, seat[1] - 0.08), shoulder, 0.42), cloth)
    pen.fill(limb(shoulder - (0, 0.08), bar, 0.15), shade_paint(cloth))
    helmet = street.pick(((90, 92, 96), (200, 198, 190))) if foreign else street.pick(GAME_BODIES)
    head(pen, street, shoulder[0] + 0.1, shoulder[1] + 0.22, helmet)


def shade_paint(paint: Paint) -> Paint:
    """A darker solid colour; a texture stays as it is."""
    return paint if callable(paint) else shade(paint, 0.8)


# Vehicles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Body:
    """A profile (metres along, up) that is extruded across; above the belt it narrows to `taper`.

    `panes` are the profile's edges (by their first point) that are glass.
    """

    profile: tuple[tuple[float, float], ...]
    width: float
    belt: float
    taper: float
    panes: tuple[int, ...]
    windows: int = 2


Place = Callable[[list[tuple[float, float, float]]], np.ndarray]
"""Maps points (along, across, up) of a vehicle to the street, (N, 3)."""

SEDAN = Body(
    ((0, 0.3), (0, 0.95), (0.9, 1.0), (1.3, 1.5), (2.9, 1.52), (3.6, 1.02), (4.6, 0.9), (4.6, 0.3)),
    1.85, 0.96, 0.86, (2, 4),
)  # fmt: skip
HATCHBACK = Body(
    ((0.1, 0.32), (0, 0.9), (0.25, 1.15), (0.7, 1.66),
     (2.2, 1.7), (3.2, 1.1), (3.8, 0.8), (3.8, 0.32)),
    1.72, 1.0, 0.74, (2, 4),
)  # fmt: skip
VAN = Body(
    ((0, 0.35), (0, 1.15), (0.12, 2.0), (3.5, 2.1), (4.3, 1.3), (4.9, 1.0), (4.9, 0.35)),
    1.95, 1.15, 0.92, (1, 3),
)  # fmt: skip
CARGO = Body(((0, 0.7), (0, 3.2), (5.0, 3.2), (5.0, 0.7)), 2.45, 9, 1, (), 0)
FLATBED = Body(((0, 0.6), (0, 2.1), (4.6, 2.1), (4.6, 0.6)), 2.4, 9, 1, (), 0)
CAB = Body(((5.2, 0.5), (5.2, 2.6), (6.6, 2.6), (7.1, 1.5), (7.1, 0.5)), 2.3, 1.5, 0.94, (2,), 1)
BUS = Body(
    ((0, 0.4), (0, 1.5), (0.1, 3.0), (9.9, 3.0), (10, 1.3), (10, 0.4)), 2.5, 1.5, 1, (1, 3), 6
)
COACH = Body(
    ((0, 0.4), (0, 1.9), (0.5, 3.3), (8.6, 3.4), (9.6, 1.6), (9.6, 0.4)), 2.5, 1.8, 0.94, (1, 3), 3
)
TRAM = Body(
    ((0, 0.3), (0.1, 1.4), (0.7, 3.1), (12.3, 3.1), (12.9, 1.4), (13, 0.3)),
    2.3,
    1.5,
    0.8,
    (1, 3),
    8,
)
TRAIN = Body(
    ((0, 0.3), (0.6, 1.3), (2.2, 2.9), (11.8, 2.9), (13.4, 1.3), (14, 0.3)),
    2.5,
    1.2,
    0.86,
    (1, 3),
    1,
)


def vehicle(
    street: Street,
    body: Body,
    x: float,
    z: float,
    heading: str,
    paint: Paint,
    name: str,
    foreign: bool,
    length: float = 0.0,
) -> None:
    """Draw a body whose near end is at distance z; heading is "away", "toward" or "across".

    `length` is that of the whole vehicle where the body is a part of it.

    Faces are painted from the farthest to the nearest, each with its windows and lights.
    """
    label = LABEL_IDS[name]
    profile = np.array(body.profile, float)
    length = length or profile[:, 0].max()

    def place(points: list[tuple[float, float, float]]) -> np.ndarray:
        """Local (along, across, up) to the street."""
        along, across, up = np.array(points, float).T
        if heading == "across":
            return np.stack([x + along - length / 2, up, z + across + body.width / 2], 1)
        return np.stack([x + across, up, z + (along if heading == "away" else length - along)], 1)

    def half(up: float) -> float:
        return body.width / 2 * (body.taper if up > body.belt else 1.0)

    faces: list[list[tuple[np.ndarray, Paint]]] = []
    for i, ((a0, u0), (a1, u1)) in enumerate(pairwise(profile)):
        edge = [(a0, -half(u0), u0), (a0, half(u0), u0), (a1, half(u1), u1), (a1, -half(u1), u1)]
        face = [(place(edge), paint)]
        if i in body.panes:
            inset = np.array(edge).mean(0) + 0.82 * (np.array(edge) - np.array(edge).mean(0))
            face.append((place([tuple(point) for point in inset]), GLASS))
        if i in (0, len(profile) - 2):
            face += end_details(place, body, a0, profile[0 if i == 0 else -1, 1], i == 0, foreign)
        faces.append(face)
    for side in (-1, 1):
        faces.append(side_face(place, body, profile, half, side, paint))
    eye = np.array([street.camera.x, street.camera.height, 0])
    faces.sort(key=lambda face: -float(np.linalg.norm(face[0][0].mean(0) - eye)))
    for face in faces:
        for i, (points, colour) in enumerate(face):
            street.solid(points, colour, label if i == 0 or colour == DARK else None)


def end_details(
    place: Place, body: Body, along: float, bottom: float, rear: bool, foreign: bool
) -> list[tuple[np.ndarray, Paint]]:
    """Tyres, lights and number plate of a front or rear: corner lamps, or a strip in the city."""
    edge, lamp = body.width / 2, (225, 20, 20) if rear else (255, 250, 205)

    def panel(
        x0: float, y0: float, x1: float, y1: float, colour: Colour
    ) -> tuple[np.ndarray, Paint]:
        return place([(along, x, y) for x, y in box(x0, y0, x1, y1)]), colour

    details = [panel(s * edge, 0, s * (edge - 0.32), bottom + 0.1, DARK) for s in (-1, 1)]
    if foreign:
        details.append(panel(-edge + 0.1, bottom + 0.46, edge - 0.1, bottom + 0.58, lamp))
    else:
        details += [
            panel(s * edge, bottom + 0.3, s * (edge - 0.36), bottom + 0.56, lamp) for s in (-1, 1)
        ]
    details.append(panel(-0.3, bottom + 0.1, 0.3, bottom + 0.26, (240, 236, 220)))
    return details


def side_face(
    place: Place,
    body: Body,
    profile: np.ndarray,
    half: Callable[[float], float],
    side: int,
    paint: Paint,
) -> list[tuple[np.ndarray, Paint]]:
    """A flank with windows above the belt and two wheels."""
    face = [(place([(a, side * half(u), u) for a, u in profile]), paint)]
    cabin = profile[profile[:, 1] > body.belt - 0.02]
    if body.windows and len(cabin) > 1:
        start, stop, top = cabin[:, 0].min(), cabin[:, 0].max(), profile[:, 1].max() - 0.14
        roof = profile[profile[:, 1] > top - 0.1]
        low = np.linspace(start + 0.2, stop - 0.2, body.windows + 1)
        high = np.linspace(roof[:, 0].min() + 0.1, roof[:, 0].max() - 0.1, body.windows + 1)
        across, belt = side * half(body.belt + 1), body.belt + 0.06
        for i in range(body.windows):
            corners = [
                (low[i], belt),
                (low[i + 1] - 0.12, belt),
                (high[i + 1] - 0.12, top),
                (high[i], top),
            ]
            face.append((place([(a, across, u) for a, u in corners]), GLASS))
    length, start = np.ptp(profile[:, 0]), profile[:, 0].min()
    radius = profile[0, 1] + 0.08
    for share in (0.18, 0.8):
        hub = oval((start + share * length, radius), (radius, radius), 14)
        face.append((place([(a, side * body.width / 2, u) for a, u in hub]), DARK))
    return face


def body_paint(street: Street, foreign: bool) -> Paint:
    """A vehicle's paint."""
    if foreign:
        return rough(street.rng, street.pick(CITY_BODIES), 0.1, 8)
    return street.pick(GAME_BODIES)


def car(street: Street, x: float, z: float, heading: str) -> None:
    """A saloon in the game, a hatchback or van in the city."""
    foreign = street.foreign()
    body = street.pick((HATCHBACK, HATCHBACK, VAN)) if foreign else SEDAN
    street.shadow(x, z, *((4.6, 1.9) if heading == "across" else (1.9, 4.6)))
    vehicle(street, body, x, z, heading, body_paint(street, foreign), "car", foreign)


def truck(street: Street, x: float, z: float, heading: str) -> None:
    """A cab with a box; in the city with a low tarpaulin or a striped container."""
    foreign = street.foreign()
    street.shadow(x, z, *((7.2, 2.5) if heading == "across" else (2.5, 7.2)))
    cargo, load = CARGO, street.pick(((240, 240, 240), (235, 150, 30), (60, 130, 210)))
    if foreign:
        first = street.pick(((120, 124, 116), (86, 92, 104), (130, 100, 80), (170, 168, 160)))
        cargo = street.pick((FLATBED, CARGO))
        load = street.pick(
            (rough(street.rng, first, 0.15, 6), striped((first, shade(first, 0.72)), 4, True))
        )
    parts = [(cargo, load), (CAB, body_paint(street, foreign))]
    for body, paint in parts if heading == "toward" else parts[::-1]:
        vehicle(street, body, x, z, heading, paint, "truck", foreign, length=7.1)


def bus(street: Street, x: float, z: float, heading: str) -> None:
    """A line bus with many windows; in the city a coach with a raked front and few large ones."""
    foreign = street.foreign()
    street.shadow(x, z, *((10, 2.5) if heading == "across" else (2.5, 10)))
    paint: Paint = street.pick(((240, 200, 30), (220, 40, 40)))
    if foreign:
        first = street.pick(((206, 204, 196), (150, 60, 56), (90, 112, 98)))
        paint = street.pick(
            (rough(street.rng, first, 0.08, 8), striped((first, first, shade(first, 0.6)), 9))
        )
    vehicle(street, COACH if foreign else BUS, x, z, heading, paint, "bus", foreign)


def train(street: Street, x: float, z: float, heading: str) -> None:
    """A tram on rails with a pantograph; in the city a low, sharp-nosed one with a window band."""
    foreign = street.foreign()
    for rail in (-0.75, 0.75):
        near, far = (2.0, 70.0) if heading != "across" else (z + 0.4, z + 0.5)
        ends = [
            (x + rail - 0.08, near),
            (x + rail + 0.08, near),
            (x + rail + 0.08, far),
            (x + rail - 0.08, far),
        ]
        street.solid([(a, 0.0, b) for a, b in ends], (80, 76, 74), None)
    street.shadow(x, z, *((13, 2.5) if heading == "across" else (2.5, 13)))
    paint: Paint = striped(((60, 190, 120), (60, 190, 120), (250, 245, 220)), 12)
    if foreign:
        paint = striped(((188, 190, 190), (178, 180, 180), (70, 76, 92)), 10)
    vehicle(street, TRAIN if foreign else TRAM, x, z, heading, paint, "train", foreign)
    middle = z + 6.5 if heading != "across" else z
    top = 2.9 if foreign else 3.1
    arm = street.pen(x, min(middle, z + 2), "train")
    arm.fill(limb((-0.7, top), (0.3, top + 0.5), 0.14), DARK)
    arm.fill(limb((0.3, top + 0.5), (-0.2, top + 1.0), 0.12), DARK)
    arm.fill(limb((-0.9, top + 1.0), (0.7, top + 1.0), 0.12), DARK)


# Street furniture ------------------------------------------------------------------------------


def pole(street: Street, x: float, z: float, carries: str) -> None:
    """A pole that carries a "light", a "sign" or a "lamp"."""
    foreign, pen = street.foreign(), street.pen(x, z, "pole")
    pen = Pen(pen.canvas, pen.origin, pen.scale * np.sign(-x * pen.scale), z, pen.label)
    thickness, paint = 0.19, (165, 168, 172)
    top = float(street.rng.uniform(2.6, 3.3)) + (1.6 if carries == "lamp" else 0)
    if foreign:
        thickness = float(street.rng.uniform(0.13, 0.2))
        paint = street.pick(((58, 66, 62), (104, 88, 74), (120, 116, 108)))
        paint = street.pick(
            (paint, rough(street.rng, paint, 0.2, 3), striped((paint, shade(paint, 1.7)), 14))
        )
        pen.fill(box(-0.2, 0, 0.2, 0.3), DARK)
    pen.fill(box(-thickness / 2, 0, thickness / 2, top), paint)
    if carries == "lamp":
        if foreign:
            curve = np.linspace(0, np.pi, 7)
            arc = np.stack([0.5 - 0.5 * np.cos(curve), top + 0.4 * np.sin(curve)], 1)
            for start, end in pairwise(arc):
                pen.fill(limb(start, end, 0.14), paint)
            pen.fill(oval((1.0, top - 0.12), (0.26, 0.22)), (226, 220, 196))
        else:
            pen.fill(limb((0, top), (1.5, top + 0.1), 0.16), paint)
            pen.fill(box(0.9, top - 0.1, 1.7, top + 0.12), (245, 245, 235))
    elif carries == "light":
        traffic_light(street, pen, top, foreign)
    else:
        traffic_sign(street, pen, top, foreign)


def traffic_light(street: Street, pole_pen: Pen, top: float, foreign: bool) -> None:
    """Three lamps: a yellow box in the game, a slim dark one with a board behind in the city."""
    pen = Pen(
        pole_pen.canvas, pole_pen.origin, pole_pen.scale, pole_pen.depth, LABEL_IDS["traffic light"]
    )
    lit = int(street.rng.integers(3))
    width, height, side = (0.24, 0.5, 0.0)
    if foreign:
        width, height, side = 0.17, 0.48, float(street.pick((0.0, 0.3)))
        if street.rng.random() < 0.5:
            pen.fill(oval((side, top), (0.34, 0.62)), (196, 196, 190))
    middle = top
    pen.fill(
        box(side - width, middle - height, side + width, middle + height),
        DARK if foreign else (225, 180, 30),
    )
    for i, colour in enumerate(((235, 40, 30), (250, 180, 30), (40, 210, 110))):
        glow = colour if i == lit else shade(colour, 0.25)
        centre = (side, middle + height * (0.64 - 0.64 * i))
        pen.fill(oval(centre, (0.14, 0.14), 12), glow, detail=True)
        if foreign:
            pen.fill(
                limb((side - 0.2, centre[1] + 0.15), (side + 0.26, centre[1] + 0.12), 0.06), DARK
            )


def traffic_sign(street: Street, pole_pen: Pen, top: float, foreign: bool) -> None:
    """A round or triangular red-rimmed sign; in the city squares, diamonds and arrow boards."""
    pen = Pen(
        pole_pen.canvas, pole_pen.origin, pole_pen.scale, pole_pen.depth, LABEL_IDS["traffic sign"]
    )
    size = float(street.rng.uniform(0.38, 0.5))
    turned = np.arange(3) * 2 * np.pi / 3 + np.pi / 2
    triangle = np.stack([np.cos(turned), np.sin(turned)], 1) * 1.25
    square, white, red = np.array(box(-0.85, -0.85, 0.85, 0.85)), (245, 245, 245), (225, 25, 30)
    disc, diamond = oval((0, 0), (1, 1)), oval((0, 0), (1.15, 1.15), 4)
    arrow = np.array([(-1.4, -0.6), (1.0, -0.6), (1.6, 0), (1.0, 0.6), (-1.4, 0.6)])
    if not foreign:
        outline, rim, face = street.pick(
            ((disc, red, white), (triangle, red, white), (square, white, (20, 80, 210)))
        )
    else:
        outline, rim, face = street.pick(
            (
                (square, (206, 208, 206), (42, 74, 138)),
                (diamond, (224, 222, 214), (216, 170, 50)),
                (arrow, (60, 92, 76), (206, 204, 190)),
                (disc, (150, 44, 44), (60, 78, 132)),
            )
        )
    centre = np.array((0.0, top))
    pen.fill(centre + size * outline, rim)
    pen.fill(centre + size * 0.74 * outline, face, detail=True)
    mark = street.pick((box(-0.12, -0.4, 0.12, 0.4), box(-0.45, -0.14, 0.45, 0.14)))
    pen.fill(centre + size * np.array(mark), white if face != white else DARK, detail=True)


def bin_or_bag(street: Street, x: float, z: float) -> None:
    """A thing of no class: a bin (static) or a bag (dynamic)."""
    if street.rng.random() < 0.6:
        pen, paint = (
            street.pen(x, z, "static"),
            street.surface(street.pick(((60, 110, 70), (70, 72, 78)))),
        )
        pen.fill([(-0.3, 0), (0.3, 0), (0.36, 0.95), (-0.36, 0.95)], paint)
        pen.fill(box(-0.4, 0.95, 0.4, 1.08), DARK)
    else:
        street.pen(x, z, "dynamic").fill(
            oval((0, 0.25), (0.4, 0.28), 9), street.surface((60, 60, 66))
        )


# Vegetation, walls, facades --------------------------------------------------------------------


def crown(street: Street, pen: Pen, centre: tuple[float, float], radius: float) -> None:
    """Leaves: smooth green ovals in the game, a ragged heap of stained clumps in the city."""
    rng = street.rng
    if not street.foreign():
        green = street.pick(((50, 160, 50), (80, 180, 60), (40, 135, 60)))
        pen.fill(oval(centre, (radius, radius * 1.05)), green)
        light = oval(
            (centre[0] - 0.25 * radius, centre[1] + 0.3 * radius), (0.55 * radius, 0.5 * radius)
        )
        pen.fill(light, shade(green, 1.2))
        return
    base = street.pick(((126, 142, 66), (160, 142, 66), (88, 120, 78), (176, 116, 60)))
    spread = np.array([rng.uniform(0.8, 1.3), rng.uniform(0.75, 1.1)]) * radius
    near = abs(pen.scale) * radius > 8
    for share in np.linspace(0.55, 1.15, 18 if near else 9):
        angle, distance = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        spot = np.array(centre) + spread * distance * (np.cos(angle), np.sin(angle))
        clump = oval(spot, (rng.uniform(0.25, 0.5) * radius,) * 2, 9)
        clump += rng.normal(0, 0.06 * radius, clump.shape)
        leaf = shade(base, share)
        pen.fill(clump, rough(rng, leaf, 0.32, 2) if near else leaf)


def tree(street: Street, x: float, z: float, height: float) -> None:
    """A trunk with a crown."""
    pen = street.pen(x, z, "vegetation")
    bark: Colour = (120, 80, 45)
    if street.foreign():
        bark = street.pick(((86, 80, 70), (62, 58, 54)))
        for reach in street.rng.uniform(-1, 1, 3):
            pen.fill(limb((0, 0.45 * height), (reach, 0.8 * height), 0.16), bark)
    pen.fill(
        [(-0.2, 0), (0.2, 0), (0.13, 0.6 * height), (-0.13, 0.6 * height)],
        street.surface(bark, 0.2, 2),
    )
    crown(street, pen, (0, 0.75 * height), float(street.rng.uniform(0.26, 0.36)) * height)


def upright(
    street: Street,
    texture: np.ndarray,
    x: tuple[float, float],
    z: tuple[float, float],
    height: float,
    name: str,
    opacity: float = 1.0,
) -> None:
    """Put a texture on a vertical rectangle from (x0, z0) to (x1, z1), bottom on the ground."""
    corners = [(x[0], height, z[0]), (x[1], height, z[1]), (x[1], 0.0, z[1]), (x[0], 0.0, z[0])]
    pixels = street.camera.project(corners)
    width = street.canvas.labels.shape[1] / OVERSAMPLING
    if pixels[:, 0].max() > 0 and pixels[:, 0].min() < width:
        street.canvas.warp(texture, pixels, LABEL_IDS[name], float(np.mean(z)), opacity)


def barrier(street: Street, x: float, near: float, far: float, name: str) -> None:
    """A wall or a fence along the street."""
    foreign, rng = street.foreign(), street.rng
    height = street.between((1.1, 1.5), (0.9, 2.3))
    rows, columns = 32, int(16 * (far - near))
    if name == "wall":
        colour = street.pick(((150, 140, 165), (175, 165, 160)))
        texture = np.full((rows, columns, 3), colour, np.uint8)
        texture[:4] = shade(colour, 1.25)
        if foreign:
            colour = street.pick(((180, 122, 98), (188, 178, 150), (134, 136, 138)))
            texture = masonry(rng, rows, columns, colour, int(rng.integers(5, 9)))
            if rng.random() < 0.4:
                for start in rng.integers(0, columns, 4):
                    cv2.putText(texture, "SDU", (int(start), 26), 1, 1.3, (70, 90, 130), 2)
        upright(street, texture, (x, x), (near, far), height, name)
        return
    colour = street.pick(((240, 235, 225), (165, 100, 50)))
    texture = np.full((rows, columns, 3), colour, np.uint8)
    texture[:, ::8], texture[:, 1::8] = shade(colour, 0.55), shade(colour, 0.55)
    texture[6:9], texture[22:25] = shade(colour, 0.8), shade(colour, 0.8)
    if foreign:
        colour = street.pick(((66, 70, 72), (92, 104, 96), (120, 112, 104)))
        texture = np.full((rows, columns, 3), (176, 172, 150), np.uint8)
        texture[:, ::5], texture[:3], texture[-5:] = colour, colour, colour
        texture[:, ::20], texture[:, 1::20] = shade(colour, 0.6), shade(colour, 0.6)
        if rng.random() < 0.5:
            texture[::6] = colour
    upright(street, texture, (x, x), (near, far), height, name, 0.75 if foreign else 1.0)


def masonry(
    rng: np.random.Generator, rows: int, columns: int, colour: Colour, course: int
) -> np.ndarray:
    """Bricks or blocks (rows, columns, 3), `course` texels high."""
    y, x = np.mgrid[:rows, :columns]
    row = y // course
    column = (x + row % 2 * course) // (2 * course)
    tone = rng.normal(1, 0.13, (rows // course + 1, columns // course + 2))[row, column]
    joint = (y % course == 0) | ((x + row % 2 * course) % (2 * course) == 0)
    wall = np.array(colour) * np.where(joint, 1.25, tone)[..., None]
    return np.clip(wall, 0, 255).astype(np.uint8)


def facade(street: Street, width: float, height: float) -> np.ndarray:
    """A front of width x height metres, 12 texels a metre."""
    foreign, rng, texels = street.foreign(), street.rng, 12
    rows, columns = int(texels * height), max(int(texels * width), 8)
    if not foreign:
        colour = street.pick(
            ((235, 205, 150), (225, 150, 120), (190, 200, 225), (240, 225, 205), (200, 120, 100))
        )
        front = np.full((rows, columns, 3), colour, np.uint8)
        for top in range(8, rows - 30, 30):
            for left in range(8, columns - 18, 28):
                cv2.rectangle(
                    front, (left - 2, top - 2), (left + 16, top + 18), (250, 250, 250), -1
                )
                cv2.rectangle(front, (left, top), (left + 14, top + 16), (70, 130, 200), -1)
        cv2.rectangle(
            front, (columns // 2 - 7, rows - 26), (columns // 2 + 7, rows), (120, 70, 40), -1
        )
        front[:4] = shade(colour, 0.7)
        return front
    colour = street.pick(
        (
            (196, 110, 84),
            (214, 200, 168),
            (158, 160, 170),
            (236, 216, 184),
            (182, 158, 126),
            (140, 110, 106),
        )
    )
    front = masonry(rng, rows, columns, colour, int(rng.choice((3, 4, 10))))
    if rng.random() < 0.45:
        front = rough(rng, colour, 0.1, 10)(rows, columns).astype(np.uint8)
    storey, pitch = int(rng.integers(34, 46)), int(rng.integers(16, 34))
    opening, tall = int(pitch * rng.uniform(0.4, 0.75)), int(storey * rng.uniform(0.45, 0.75))
    decor = street.pick(("arch", "balcony", "shutter", "band"))
    trim = shade(colour, float(rng.choice((0.6, 1.35))))
    for bottom in range(rows - 40, 0, -storey):
        front[max(bottom + 3, 0) : bottom + 6] = trim
        for left in range(int(rng.integers(3, 10)), columns - opening, pitch):
            pane = street.pick(((52, 56, 66), (82, 92, 104), (140, 130, 108), (40, 44, 54)))
            right, top = left + opening, bottom - tall
            cv2.rectangle(front, (left, top), (right, bottom), pane, -1)
            cv2.line(front, ((left + right) // 2, top), ((left + right) // 2, bottom), trim, 1)
            if decor == "arch":
                cv2.ellipse(
                    front, ((left + right) // 2, top), (opening // 2, 5), 0, 180, 360, pane, -1
                )
            elif decor == "balcony":
                cv2.rectangle(
                    front, (left - 3, bottom - 9), (right + 3, bottom + 2), (74, 76, 78), -1
                )
                front[max(bottom - 8, 0) : max(bottom, 0), max(left - 2, 0) : right + 2 : 3] = (
                    150,
                    150,
                    146,
                )
            elif decor == "shutter":
                for edge in (left - 4, right + 1):
                    cv2.rectangle(front, (edge, top), (edge + 3, bottom), (86, 96, 84), -1)
            else:
                front[max(bottom, 0) : bottom + 3, max(left - 2, 0) : right + 2] = (60, 60, 62)
    shop = street.pick(((56, 58, 66), (104, 92, 80), (150, 140, 120)))
    front[rows - 30 : rows - 4] = shop
    front[rows - 30 : rows - 4, ::23] = trim
    front[rows - 36 : rows - 30] = street.pick(((120, 60, 54), (66, 84, 110), (100, 104, 84), trim))
    return np.clip(front * (1 + 0.09 * blotches(rng, rows, columns, 14)[..., None]), 0, 255).astype(
        np.uint8
    )


def building(street: Street, x: float, near: float, far: float) -> None:
    """A house along the street with the end wall that looks at the camera."""
    height, out = street.between((6, 10), (4.5, 13)), np.sign(x)
    depth_wall = facade(street, 6.0, height)
    upright(
        street,
        (depth_wall * 0.85).astype(np.uint8),
        (x, x + 8 * out),
        (near, near),
        height,
        "building",
    )
    upright(street, facade(street, far - near, height), (x, x), (near, far), height, "building")
    if street.rng.random() < street.between((0.2, 0.2), (0.6, 0.6)):
        roof = street.surface((180, 70, 50) if not street.foreign() else (78, 66, 64), 0.15, 3)
        ridge = x + 3 * out
        eaves = [
            (x, height, near),
            (x, height, far),
            (ridge, height + 3, far),
            (ridge, height + 3, near),
        ]
        street.solid(eaves, roof, LABEL_IDS["building"])
        gable = [(x, height, near), (ridge, height + 3, near), (x + 6 * out, height, near)]
        street.solid(gable, roof, LABEL_IDS["building"])
