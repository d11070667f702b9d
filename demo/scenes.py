"""Procedural street scenes in two looks, written in the raw layouts of the real data sets.

Scene i of a look and split depends only on (look, split, i), the size and the difficulty.
Run `python -m demo.scenes` to write the embedded benchmark.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from demo import objects
from demo.drawing import LABEL_IDS, OVERSAMPLING, Camera, Canvas, Street, oval, rough
from ssda.labels import CITYSCAPES, CITYSCAPES_IDS, SYNTHIA_IDS

GAME_SIZE = (144, 272)
CITY_SIZE = (128, 256)


@dataclass(frozen=True)
class Look:
    """How far a look is from the game: both strengths are 0 there and about 1 in the city.

    Attributes:
        name: game or city.
        photometric: strength of other colours and light.
        structural: strength of other shapes and numbers.
        frequencies: how many times as often things of COUNTS stand on a street, and how many times
            as wide its road is; 1 where nothing is said.
    """

    name: str
    photometric: float = 0.0
    structural: float = 0.0
    frequencies: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """ValueError for a frequency of nothing that is drawn, or below 0."""
        for name, factor in self.frequencies.items():
            if name not in (ROAD, *COUNTS) or factor < 0:
                raise ValueError(
                    f"frequencies.{name} = {factor}: allowed are numbers >= 0 for "
                    f"{', '.join((ROAD, *COUNTS))}"
                )


def city(difficulty: float, frequencies: Mapping[str, float] | None = None) -> Look:
    """The city's look; difficulty 1 is the default, 0.5 easier, 1.4 as hard as shapes can get.

    The balance is such that new statistics of batch normalisation close less than half of the gap:
    they mend colours, not shapes. Frequencies are a look's.
    """
    return Look("city", 0.5 * difficulty, 0.7 * difficulty, frequencies or {})


# How often things stand on a street, on average: (game, city). Moves with the structural strength.
COUNTS = {
    "person": (1.5, 2.0),
    "rider": (0.55, 0.7),
    "bicycle": (0.35, 0.3),
    "motorcycle": (0.5, 0.35),
    "parked": (2.8, 3.6),
    "car": (1.0, 0.8),
    "truck": (0.2, 0.22),
    "bus": (0.2, 0.22),
    "train": (0.2, 0.2),
    "light": (1.3, 1.2),
    "sign": (1.2, 1.2),
    "lamp": (0.35, 0.3),
    "tree": (2.4, 2.6),
    "bin": (0.3, 0.6),
}
ROAD = "road"
"""Among a look's frequencies: its width."""
GAME = Look("game")


@dataclass(frozen=True)
class Layout:
    """The ground plan in metres: half the road, then verge and pavement on both sides."""

    road: float
    verge: float
    pavement: float
    crossing: tuple[float, float]

    @property
    def edge(self) -> float:
        """Where houses and gardens begin."""
        return self.road + self.verge + self.pavement


def draw_scene(
    look: Look, split: str, index: int, *, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Scene `index` as RGB (H, W, 3) and Cityscapes label ids (H, W), both uint8."""
    rng = np.random.default_rng([zlib.crc32(look.name.encode()), zlib.crc32(split.encode()), index])
    height, width = size
    street = Street(Canvas(size), Camera(), rng, look.structural, look.photometric)
    layout = Layout(
        road=street.between((3.5, 4.1), (2.9, 4.8)) * look.frequencies.get(ROAD, 1.0),
        verge=street.pick((0.0, 0.0, 1.5)),
        pavement=street.between((2.8, 3.6), (1.8, 4.2)),
        crossing=street.pick(((0.0, 0.0), (0.0, 0.0), (18.0, 27.0))),
    )
    street.camera = Camera(
        focal=0.85 * width,
        centre=width * float(rng.uniform(0.42, 0.58)),
        horizon=height * street.between((0.42, 0.46), (0.34, 0.52)),
        height=street.between((1.45, 1.6), (1.2, 2.2)),
        x=layout.road * float(rng.uniform(0.1, 0.4)),
    )
    sky(street)
    ground(street, layout)
    frontage(street, layout)
    for _, draw in sorted(things(street, layout, look, width), key=lambda thing: -thing[0]):
        draw()
    canvas = street.canvas
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA)
    step = OVERSAMPLING
    labels, depth = canvas.labels[::step, ::step].copy(), canvas.depth[::step, ::step]
    if look.name == "city":
        bonnet(image, labels, rng)
        image = photograph(image, depth, rng, look.photometric)
    return image, labels


# Backdrop --------------------------------------------------------------------------------------


def sky(street: Street) -> None:
    """Fill the canvas with sky: blue with white ovals in the game, overcast in the city."""
    canvas, rng, camera = street.canvas, street.rng, street.camera
    rows, columns = canvas.labels.shape
    blend = np.clip(np.arange(rows) / (camera.horizon * OVERSAMPLING), 0, 1)[:, None, None]
    if street.foreign():
        zenith, rim = street.pick(
            (((206, 214, 226), (250, 248, 240)), ((160, 192, 232), (246, 242, 232)))
        )
        clouds = objects.blotches(rng, rows, columns, 60) + 0.6 * objects.blotches(
            rng, rows, columns, 22
        )
        picture = np.array(zenith) * (1 - blend) + np.array(rim) * blend + 12 * clouds[..., None]
        canvas.image[:] = np.clip(picture, 0, 255)
    else:
        canvas.image[:] = np.array((50, 130, 240)) * (1 - blend) + np.array((150, 205, 255)) * blend
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(0, columns / 2), rng.uniform(2, camera.horizon * 0.7)
            for shift in (-9, 0, 9):
                canvas.fill(
                    oval((x + shift, y - abs(shift) * 0.1), (11, 5)), (255, 255, 255), None, 0
                )
    canvas.labels[:] = LABEL_IDS["sky"]
    canvas.depth[:] = 60


def ground(street: Street, layout: Layout) -> None:
    """Paint road, verge and pavement below the horizon, pixel by pixel on the ground plane."""
    canvas, camera, rng = street.canvas, street.camera, street.rng
    rows, columns = canvas.labels.shape
    top = int(np.ceil((camera.horizon + 1.0) * OVERSAMPLING))
    y, x = np.mgrid[top:rows, :columns] / OVERSAMPLING
    z = camera.focal * camera.height / (y - camera.horizon)
    lateral = (x - camera.centre) * z / camera.focal + camera.x
    across = np.abs(lateral)
    in_crossing = (z > layout.crossing[0]) & (z < layout.crossing[1])
    road = (across < layout.road) | in_crossing
    verge = ~road & (across < layout.road + layout.verge)
    pavement = ~road & ~verge
    stain = rng.normal(size=(256, 256)).astype(np.float32)
    stain = cv2.GaussianBlur(stain, (0, 0), 1.2, borderType=cv2.BORDER_REFLECT) * 4
    at = [(value * 9).astype(np.float32) for value in (lateral, z)]
    grain = cv2.remap(stain, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[..., None]
    fade = np.clip(16 / z, 0, 1)[..., None]

    colour = np.zeros((*road.shape, 3))
    foreign = street.foreign()
    if foreign:
        colour[road] = street.pick(((150, 144, 138), (126, 122, 124), (168, 154, 138)))
        paving = street.pick(((176, 158, 146), (196, 184, 168), (150, 150, 158)))
        colour[verge], colour[pavement] = street.pick(((150, 144, 70), (116, 134, 66))), paving
        colour *= 1 + 0.12 * fade * grain
        if rng.random() < 0.5:
            colour[road & cobbles(lateral, z, 0.35)] *= 0.72
        else:
            worn_patches(colour, road, lateral, z, rng)
        colour[pavement & cobbles(lateral, z, 0.8)] *= 0.78
        kerb = np.abs(across - layout.road) < 0.14
        colour[kerb & ~in_crossing] = np.array(paving) * 1.2
    else:
        colour[road], colour[verge], colour[pavement] = (
            (92, 92, 100),
            (110, 200, 70),
            (215, 195, 190),
        )
        colour[(np.abs(across - layout.road - 0.1) < 0.12) & ~in_crossing] = (240, 235, 230)
    mark = lane_marks(lateral, z, layout, foreign) & ~in_crossing
    wear = np.clip(0.75 + 0.35 * grain, 0.1, 1) if foreign else 1.0
    paint = street.pick(((214, 210, 200), (196, 170, 90))) if foreign else (255, 255, 255)
    colour = np.where(mark[..., None], colour * (1 - wear) + np.array(paint) * wear, colour)
    colour *= 1 - cast_shadow(street, layout, lateral, z)[..., None]

    canvas.image[top:] = np.clip(colour, 0, 255)
    canvas.labels[top:] = np.select(
        [road, verge], [LABEL_IDS["road"], LABEL_IDS["terrain"]], LABEL_IDS["sidewalk"]
    )
    canvas.depth[top:] = z


def cobbles(lateral: np.ndarray, z: np.ndarray, size: float) -> np.ndarray:
    """Where the joints of a paving with stones of `size` metres are, as far as one sees them."""
    row = np.floor(z / size)
    joint = (z / size % 1 < 0.16) | ((lateral / size + row % 2 / 2) % 1 < 0.16)
    return joint & (z < 40 * size)


def worn_patches(
    colour: np.ndarray,
    road: np.ndarray,
    lateral: np.ndarray,
    z: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Mend the road with darker or lighter rectangles and lay wheel tracks."""
    for _ in range(6):
        middle, start = rng.uniform(-4, 4), rng.uniform(4, 25)
        patch = (np.abs(lateral - middle) < rng.uniform(0.4, 1.4)) & (
            np.abs(z - start) < rng.uniform(0.5, 3)
        )
        colour[road & patch] *= rng.choice((0.75, 0.85, 1.18))
    colour[road & (np.abs(np.abs(lateral) % 2.2 - 1.1) < 0.25)] *= 0.9


def lane_marks(lateral: np.ndarray, z: np.ndarray, layout: Layout, foreign: bool) -> np.ndarray:
    """Where paint is: bold dashes and edges in the game; thin short dashes and a zebra else."""
    if foreign:
        middle = (np.abs(lateral) < 0.07) & (z % 4 < 1.5)
        parking = (np.abs(np.abs(lateral) - layout.road + 2.1) < 0.06) & (z < 30)
        start = layout.crossing[0] - 4 if layout.crossing[1] else 11.0
        zebra = (z > start) & (z < start + 2.5) & (lateral % 1.1 < 0.5)
        return middle | parking | (zebra & (np.abs(lateral) < layout.road))
    middle = (np.abs(lateral) < 0.13) & (z % 6 < 3.5)
    return middle | (np.abs(np.abs(lateral) - layout.road + 0.35) < 0.1)


def cast_shadow(street: Street, layout: Layout, lateral: np.ndarray, z: np.ndarray) -> np.ndarray:
    """How much light houses and trees on one side take from the ground (h, w), 0 in the game."""
    rng, side = street.rng, street.pick((-1, 1))
    reach = np.repeat(rng.uniform(-1.0, 1.2, 40) * layout.road, 4)
    edge = reach[np.clip(z * 1.5, 0, 159).astype(int)]
    return np.where(side * lateral > edge, min(0.8, 0.5 * street.photometric), 0.0)


def frontage(street: Street, layout: Layout) -> None:
    """Line both sides with houses, gardens, walls and fences, and close the street at its end."""
    rng = street.rng
    for x in rng.uniform(-60, 60, 11):
        distant(street, float(x))
    for side in (-1, 1):
        x = side * layout.edge
        stretches: list[tuple[float, float]] = []
        near = float(rng.uniform(2.0, 7.0))
        while near < 62:
            far = near + float(rng.uniform(6, 13))
            start, stop = layout.crossing
            if far <= start or near >= stop:
                stretches.append((near, far))
            near = far
        for near, far in reversed(stretches):
            roll = rng.random()
            if roll < 0.5:
                objects.building(street, x, near, far)
            else:
                garden(street, x, near, far, roll)


def distant(street: Street, x: float) -> None:
    """A house or tree at the end of the street."""
    if street.rng.random() < 0.5:
        objects.tree(street, x, 72, float(street.rng.uniform(6, 10)))
        return
    wide, high = street.rng.uniform(4, 9), street.rng.uniform(6, 14)
    colour = (
        (166, 156, 150) if street.foreign() else street.pick(((230, 190, 150), (190, 190, 215)))
    )
    paint = rough(street.rng, colour, 0.15, 3) if street.foreign() else colour
    corners = [(x - wide, 0, 75), (x + wide, 0, 75), (x + wide, high, 75), (x - wide, high, 75)]
    street.solid(corners, paint, LABEL_IDS["building"])


def garden(street: Street, x: float, near: float, far: float, roll: float) -> None:
    """Grass with trees and bushes, often behind a wall or a fence."""
    rng, out = street.rng, np.sign(x)
    grass = street.surface((112, 200, 76) if street.structural < 0.5 else (146, 146, 76), 0.2, 3)
    lawn = [(x, 0, near), (x + 30 * out, 0, near), (x + 30 * out, 0, far), (x, 0, far)]
    street.solid(lawn, grass, LABEL_IDS["terrain"])
    for z in sorted(rng.uniform(near, far, 3), reverse=True):
        away = float(rng.uniform(4, 9))
        if rng.random() < 0.5:
            objects.tree(street, x + away * out, float(z), float(rng.uniform(4.5, 7.5)))
        else:
            pen = street.pen(x + away * out, float(z), "vegetation")
            objects.crown(street, pen, (0, 0.7), float(rng.uniform(1.0, 1.9)))
    if roll > 0.68:
        objects.barrier(street, x, near, far, "wall" if roll > 0.84 else "fence")


# What stands and moves on the street -----------------------------------------------------------

Thing = tuple[float, Callable[[], None]]
"""Distance in metres and what to draw there."""


def things(street: Street, layout: Layout, look: Look, width: int) -> Iterator[Thing]:
    """Draw lots for everything on road and pavement."""
    rng, camera = street.rng, street.camera
    kerb = layout.road + 0.35

    def how_many(name: str) -> int:
        """A count with the wanted mean that varies as little as whole numbers can, plus chance."""
        game, city = COUNTS[name]
        mean = max(0.0, street.between((game, game), (city, city)))
        mean *= look.frequencies.get(name, 1.0)
        return int(rng.poisson(mean)) if mean > 1 else int(rng.random() < mean)

    def spot(
        low: float, high: float, nearest: float, farthest: float, side: int = 0
    ) -> tuple[float, float]:
        """A place with |x| in [low, high] that the camera sees; side 0 means either."""
        x = float(rng.uniform(low, high)) * (side or street.pick((-1, 1)))
        start = max(nearest, camera.nearest(x, width))
        return x, start + float(rng.triangular(0, 0, max(farthest - start, 1)))

    def put(draw: Callable[..., None], x: float, z: float, *rest: object, **more: object) -> Thing:
        return z, partial(draw, street, x, z, *rest, **more)

    # Two-wheelers and poles change sides from one to the next, so that they rarely hide each other.
    sides = itertools.cycle(street.pick(((-1, 1), (1, -1))))
    middle, walk = layout.road - 1.0, layout.road + layout.verge + 0.5
    for _ in range(how_many("person")):
        low, high = (0.5, layout.road) if rng.random() < 0.2 else (walk, layout.edge - 0.3)
        yield put(objects.person, *spot(low, high, 7, 18))
    for _ in range(how_many("rider")):
        yield put(objects.bicycle, *spot(0.8, middle, 7.5, 13, next(sides)), ridden=True)
    for _ in range(how_many("motorcycle")):
        place = spot(0.8, middle, 7.5, 13, next(sides))
        yield put(objects.motorcycle, *place, ridden=rng.random() < 0.5)
    for _ in range(how_many("bicycle")):
        yield put(objects.bicycle, *spot(kerb, layout.edge - 0.8, 8, 14))
    for carries in ("light", "sign", "lamp"):
        for _ in range(how_many(carries)):
            yield put(objects.pole, *spot(kerb, kerb + 0.6, 7, 15, next(sides)), carries)
    for _ in range(how_many("tree")):
        x, z = spot(kerb + 0.4, kerb + 1.0, 9, 40)
        yield put(objects.tree, x, z, float(rng.uniform(4.5, 7.0)))
    for _ in range(how_many("bin")):
        yield put(objects.bin_or_bag, *spot(walk, layout.edge, 8, 16))
    for _ in range(how_many("parked")):
        x, z = spot(layout.road - 1.05, layout.road - 0.95, 7, 32)
        yield put(objects.car, x, z, "away" if x > 0 else "toward")
    lanes = traffic(street, layout)
    for name, draw in (("truck", objects.truck), ("bus", objects.bus), ("train", objects.train)):
        for _ in range(how_many(name)):
            yield put(draw, *next(lanes))
    for _ in range(how_many("car")):
        yield put(objects.car, *next(lanes))


def traffic(street: Street, layout: Layout) -> Iterator[tuple[float, float, str]]:
    """Places (x, z) and headings in the lanes, one behind the other; some cross the street."""
    rng, side = street.rng, street.pick((-1, 1))
    for i in itertools.count():
        z = 10.5 + 12 * (i // 2) + float(rng.uniform(0, 6))
        if rng.random() < 0.2:
            yield float(rng.uniform(-5, 5)), max(z, 17.0), "across"
        else:
            yield side * min(layout.road / 2, 2.2), z, "away" if side > 0 else "toward"
        side = -side


# The camera's part -----------------------------------------------------------------------------


def photograph(
    image: np.ndarray, depth: np.ndarray, rng: np.random.Generator, strength: float
) -> np.ndarray:
    """Haze, pale and dark colours, a colour cast, vignette, blur and noise; (H, W, 3) uint8."""
    height, width = depth.shape
    y, x = np.mgrid[:height, :width]
    thickness = 0.012 * rng.uniform(0.5, 1.5) * strength
    haze = 1 - np.exp(-thickness * depth * (1.15 - 0.3 * y / height))[..., None]
    picture = image * (1 - haze) + np.array((208, 212, 214)) * haze
    saturation = max(0.1, 1 - strength * (1 - rng.uniform(0.25, 0.5)))
    grey = picture @ np.array((0.299, 0.587, 0.114))
    picture = grey[..., None] + saturation * (picture - grey[..., None])
    picture *= (rng.uniform(0.5, 0.85) * np.array((0.80, 1.00, 0.92))) ** strength
    radius = (2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2
    picture *= (1 - 0.2 * strength * radius / 2)[..., None]
    picture = cv2.GaussianBlur(picture, (0, 0), 0.5 * strength + 0.01)
    picture += rng.normal(0, 7 * strength, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def bonnet(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Draw the own car's hood (id 1) into the lower rim, in place."""
    height, width = labels.shape
    rise = height * rng.uniform(0.047, 0.07)
    hood = np.array([(0, height), *hood_line(width, height, rise), (width, height)])
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(hood).astype(np.int32)], 1)
    inside = mask.astype(bool)
    image[inside] = np.array((70, 74, 80)) * rng.uniform(0.6, 1.5)
    labels[inside] = LABEL_IDS["ego vehicle"]


def hood_line(width: int, height: int, rise: float) -> np.ndarray:
    """The upper edge of the hood, (17, 2) pixels from left to right."""
    across = np.linspace(-1, 1, 17)
    return np.stack([(across + 1) * width / 2, height - rise * np.sqrt(1 - 0.9 * across**2)], 1)


# Writers ---------------------------------------------------------------------------------------


@contextmanager
def fresh_folder(root: Path) -> Generator[Path]:
    """A temporary folder beside `root` that replaces it once the block has ended well."""
    unfinished = root.with_name(root.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(root, ignore_errors=True)
    unfinished.rename(root)


def for_each(task: Callable[[int], None], count: int, processes: int) -> None:
    """Call task(0) ... task(count - 1) in some processes; 1 stays in this one."""
    if processes == 1:
        for i in range(count):
            task(i)
        return
    # Spawned, not forked: a fork copies the locks of threads that OpenCV or a caller started.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for _ in pool.imap_unordered(task, range(count), chunksize=8):
            pass


def write_gta(
    root: Path | str,
    count: int,
    *,
    size: tuple[int, int] = GAME_SIZE,
    processes: int | None = None,
) -> None:
    """Write `count` game scenes in GTA's layout: images/ and palette labels/00001.png."""
    with fresh_folder(Path(root)) as folder:
        for name in ("images", "labels"):
            (folder / name).mkdir()
        for_each(partial(write_gta_scene, folder, size), count, processes or cpu_count())


def write_gta_scene(folder: Path, size: tuple[int, int], index: int) -> None:
    """Write one scene; GTA counts from 1."""
    image, labels = draw_scene(GAME, "train", index, size=size)
    write_png(folder / "images" / f"{index + 1:05d}.png", image)
    picture = Image.fromarray(labels)
    picture.putpalette(label_palette().tobytes())
    picture.save(folder / "labels" / f"{index + 1:05d}.png")


def write_synthia(
    root: Path | str,
    count: int,
    *,
    size: tuple[int, int] = GAME_SIZE,
    processes: int | None = None,
) -> None:
    """Write `count` game scenes in SYNTHIA's layout: RGB/ and 16-bit GT/LABELS/0000000.png."""
    with fresh_folder(Path(root)) as folder:
        for name in ("RGB", "GT/LABELS"):
            (folder / name).mkdir(parents=True)
        for_each(partial(write_synthia_scene, folder, size), count, processes or cpu_count())


def write_synthia_scene(folder: Path, size: tuple[int, int], index: int) -> None:
    """Write one scene: class in the red channel, a number per connected piece in the green one."""
    image, labels = draw_scene(GAME, "train", index, size=size)
    classes = np.zeros(256, np.uint16)
    synthia = {name: raw for raw, name in SYNTHIA_IDS.items()}
    for raw, name in CITYSCAPES_IDS.items():
        classes[raw] = synthia[name]
    annotation = np.zeros((*labels.shape, 3), np.uint16)
    annotation[..., 0] = classes[labels]
    for train in CITYSCAPES.things:
        thing = annotation[..., 0] == synthia[CITYSCAPES.names[train]]
        pieces = cv2.connectedComponents(thing.astype(np.uint8))[1]
        annotation[..., 1] = np.where(
            pieces > 0, annotation[..., 1].max() + pieces, annotation[..., 1]
        )
    write_png(folder / "RGB" / f"{index:07d}.png", image)
    write_png(folder / "GT" / "LABELS" / f"{index:07d}.png", annotation)


def write_cityscapes(
    root: Path | str,
    counts: dict[str, int],
    *,
    look: Look | None = None,
    size: tuple[int, int] = CITY_SIZE,
    processes: int | None = None,
) -> None:
    """Write counts[split] city scenes of each split in Cityscapes' layout, all with labels.

    The look is the city's of difficulty 1 unless another is given.
    """
    with fresh_folder(Path(root)) as folder:
        for split in counts:
            for name in ("leftImg8bit", "gtFine"):
                (folder / name / split / "town").mkdir(parents=True)
        scenes = [(split, i) for split, count in counts.items() for i in range(count)]
        task = partial(write_cityscapes_scene, folder, look or city(1.0), size, scenes)
        for_each(task, len(scenes), processes or cpu_count())


def write_cityscapes_scene(
    folder: Path,
    look: Look,
    size: tuple[int, int],
    scenes: list[tuple[str, int]],
    number: int,
) -> None:
    """Write scene `number` of the list of (split, index)."""
    split, index = scenes[number]
    image, labels = draw_scene(look, split, index, size=size)
    stem = f"town_{index:06d}_000019"
    write_png(folder / "leftImg8bit" / split / "town" / f"{stem}_leftImg8bit.png", image)
    write_png(folder / "gtFine" / split / "town" / f"{stem}_gtFine_labelIds.png", labels)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write grey (H, W) or RGB (H, W, 3), 8 or 16 bit."""
    if not cv2.imwrite(str(path), picture if picture.ndim == 2 else picture[..., ::-1]):
        raise OSError(f"cannot write {path}")


def label_palette() -> np.ndarray:
    """Cityscapes' colours by label id, (256, 3) uint8."""
    table = np.zeros((256, 3), np.uint8)
    for raw, name in CITYSCAPES_IDS.items():
        table[raw] = CITYSCAPES.colours[CITYSCAPES.names.index(name)]
    return table


def cpu_count() -> int:
    """How many processes draw by default."""
    return os.cpu_count() or 2


def main() -> None:
    """Write the benchmark's raw folders: OUT/game like GTA, OUT/city like Cityscapes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/raw"))
    parser.add_argument("--params", type=Path, default=Path("demo/params.yaml"))
    arguments = parser.parse_args()
    params = YAML(typ="safe").load(arguments.params)["scenes"]
    with fresh_folder(arguments.out) as folder:
        write_gta(folder / "game", params["game"])
        look = city(params["difficulty"], params["frequencies"])
        write_cityscapes(folder / "city", params["city"], look=look)


if __name__ == "__main__":
    main()
