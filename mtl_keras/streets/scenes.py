"""Renders synthetic street scenes with the labels and geometry of Cityscapes.

Of the 19 evaluated classes all occur but wall, fence and train. Shape, texture and
position tell them apart: exposure, tint and materials vary so much that a classifier
of single colours stays below 15 % mIoU (a test holds it there).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mtl_keras import cityscapes
from mtl_keras.hints import PathLike, Size
from mtl_keras.png import encode_png
from mtl_keras.streets import rendering
from mtl_keras.streets.frontages import add_frontage, add_skyline
from mtl_keras.streets.objects import PAINTED, add_clutter, add_pole, add_tree
from mtl_keras.streets.people import add_pedestrian, add_two_wheeler
from mtl_keras.streets.plan import KERB, Street, add_ground, sample_street
from mtl_keras.streets.surfaces import (
    BLACK,
    SIDES,
    Paint,
    Scene,
    View,
    rectangle,
    scaled,
)
from mtl_keras.streets.vehicles import add_car, add_vehicle

VERSION = 4  # of the scenes; raise it when a seed gives another scene than before
SPLITS = ("train", "val", "test")

# Chance, colours of the sky overhead and at the horizon, of the light of the sky and
# of the sun, and ranges of the sun's height (radians) and of the cloud cover, then the
# brightness of lamps: a clear day, a grey one, dusk, nightfall.
WEATHERS = (
    (0.5, (0.2, 0.38, 0.75), (0.55, 0.66, 0.85), (0.4, 0.45, 0.55), (1.4, 1.2, 0.95),
     (0.35, 1.1), (0.0, 0.7), 0.0),
    (0.32, (0.6, 0.62, 0.64), (0.66, 0.66, 0.67), (0.85, 0.85, 0.85),
     (0.15, 0.15, 0.15), (0.3, 0.9), (0.3, 1.0), 0.3),
    (0.12, (0.14, 0.2, 0.36), (0.7, 0.4, 0.22), (0.3, 0.28, 0.33), (0.8, 0.5, 0.3),
     (0.1, 0.4), (0.0, 0.9), 1.5),
    (0.06, (0.03, 0.035, 0.05), (0.1, 0.09, 0.085), (0.4, 0.35, 0.28), (0.1, 0.1, 0.1),
     (0.3, 0.4), (0.2, 1.0), 2.5),
)  # fmt: skip


def add_traffic(scene: Scene, street: Street, lamps: float) -> None:
    """Vehicles in every lane, and one that comes out of each side street."""
    rng = scene.rng
    spacing = 14 / rng.uniform(0.15, 1.0)
    kinds = ["car", "truck", "bus", "motorcycle", "bicycle"]
    for index in range(-street.lanes, street.lanes):
        offset = (index + 0.5) * street.lane
        turn = math.pi if index < 0 else 0.0
        own = abs(offset - scene.view.position[0]) < 1.5
        z = rng.uniform(7 if own else 4, 30)
        while z < 90:
            kind = rng.choice(kinds, p=[0.77, 0.07, 0.06, 0.04, 0.06])
            half = {"car": 2.5, "truck": 5, "bus": 6}.get(kind, 1)
            x = offset + rng.normal(0, 0.2) + (half == 1) * math.copysign(0.8, offset)
            pose = street.pose(x, z + half, turn + rng.normal(0, 0.02))
            add_vehicle(scene, pose, kind, lamps)
            z += 2 * half + 2 + rng.exponential(spacing)
    for index, side in enumerate(SIDES):
        if street.junctions[index] and rng.random() < 0.6:
            z = sum(street.junctions[index]) / 2 + rng.uniform(-1.5, 1.5)
            offset = side * (street.kerb[index] + rng.uniform(-2, 8))
            pose = street.pose(offset, z, rng.choice(SIDES) * math.pi / 2)
            kind = rng.choice(kinds, p=[0.5, 0.1, 0.1, 0.15, 0.15])
            add_vehicle(scene, pose, kind, lamps)


def add_parked(scene: Scene, street: Street, index: int) -> None:
    """Parked cars and motorcycles along one side of the street."""
    rng, side = scene.rng, SIDES[index]
    if street.kerb[index] < street.lane * street.lanes + 1:
        return
    start, end = street.junctions[index] or (0, 0)
    occupancy = rng.choice([0.1, 0.4, 0.8])
    for z in np.arange(rng.uniform(3, 9), 75, 6.2).tolist():
        if start - 4 < z < end + 4 or rng.random() > occupancy:
            continue
        turn = (math.pi if side < 0 else 0.0) + rng.normal(0, 0.03)
        offset = side * (street.kerb[index] - 1.15)
        if rng.random() < 0.95:
            add_car(scene, street.pose(offset, z, turn))
        else:
            add_two_wheeler(scene, street.pose(offset, z, 1.2), True, False)


def add_pavement_life(scene: Scene, street: Street, index: int) -> None:
    """Trees, poles, people, bicycles and clutter between kerb and frontage."""
    rng, side = scene.rng, SIDES[index]
    kerb, walk = street.kerb[index], street.walk[index]
    start, end = street.junctions[index] or (-9, -9)
    edge = kerb + 0.45

    def place(add, offset, z, *options, turn=0.0):
        if not start - 1 < z < end + 1:
            add(scene, street.pose(side * offset, float(z), turn, KERB), *options)

    if rng.random() < 0.65:
        height = rng.uniform(4.5, 9)
        for z in np.arange(rng.uniform(6, 16), 90, rng.uniform(8, 18)):
            place(add_tree, edge + 0.3, z, height * rng.uniform(0.8, 1.2))
    for z in np.arange(rng.uniform(8, 25), 90, rng.uniform(18, 32)):
        place(add_pole, edge, z, "lamp")
    for z in rng.uniform(6, 60, rng.poisson(1.5)):
        place(add_pole, edge + 0.2, z, "sign")
    if start > 0 and rng.random() < 0.7:
        place(add_pole, edge, start - 1.5, "light")
    elif rng.random() < 0.2:
        place(add_pole, edge, rng.uniform(10, 45), "light")
    if rng.random() < 0.35:  # a row of parked bicycles
        z, turn = rng.uniform(7, 35), rng.uniform(0.5, 1.6)
        for k in range(rng.integers(1, 6)):
            motor = rng.random() < 0.2
            place(add_two_wheeler, edge + 0.6, z + 0.9 * k, motor, False, turn=turn)
    for _ in range(rng.poisson(1.0)):
        place(add_clutter, rng.uniform(edge, walk - 0.4), rng.uniform(5, 45))
    for _ in range(rng.poisson(rng.choice([0.5, 2.5, 6]))):  # alone or in groups
        z, offset = 6 * 10 ** rng.random(), rng.uniform(kerb + 0.3, walk - 0.3)
        for shift in rng.uniform(-0.7, 0.7, 1 + rng.poisson(0.4)):
            place(add_pedestrian, offset + shift, z + rng.uniform(-0.5, 0.5))


def add_crossing_people(scene: Scene, street: Street) -> None:
    """People on the road, on foot or on two wheels."""
    rng = scene.rng
    for _ in range(rng.poisson(0.7)):
        turn = rng.choice(SIDES) * math.pi / 2
        offset = rng.uniform(-street.kerb[0], street.kerb[1])
        pose = street.pose(offset, rng.uniform(5, 35), turn)
        if rng.random() < 0.8:
            add_pedestrian(scene, pose)
        else:
            add_two_wheeler(scene, pose, rng.random() < 0.4, True)


def add_borders(scene: Scene) -> None:
    """The own bonnet and the frame that rectification leaves."""
    rng = scene.rng
    names = ("ego vehicle", "rectification border", "out of roi")
    ego, border, outside = (scene.identity(name) for name in names)
    if rng.random() < 0.75:
        top, bulge = rng.uniform(0.9, 0.97), rng.uniform(0.02, 0.05)
        s = np.linspace(0, 1, 17)
        t = top - bulge * np.sin(np.pi * s) + 0.05 * (2 * s - 1) ** 8
        edge = np.stack([s, t], 1)
        paint = scene.paint(PAINTED, tile=0.7, contrast=0.25)
        gleam = paint._replace(color=scaled(paint.color, rng.uniform(0.5, 1.8)))
        scene.cover(edge.tolist() + [(1, 1.1), (0, 1.1)], ego, paint)
        inner = (edge + (0, 0.015)).tolist()
        scene.cover(inner + [(0.7, 1.1), (0.3, 1.1)], ego, gleam)
    left, right, top, bottom = rng.uniform(0.002, 0.012, 4).tolist()
    if rng.random() < 0.8:
        scene.cover([(0, 0), (left, 0), (0.4 * left, 1), (0, 1)], border, BLACK)
        far = [(1 - 0.5 * right, 0.0), (1.0, 0.0), (1.0, 1.0), (1 - right, 1.0)]
        scene.cover(far, border, BLACK)
    for outline in (rectangle(0, 0, 1, top), rectangle(0, 1 - bottom, 1, 1.01)):
        scene.cover(outline, outside, Paint((0.1, 0.1, 0.1)))


def sample_view(rng: np.random.Generator, x: float) -> View:
    """Cityscapes' camera at full size, its mounting slightly varied."""
    camera = cityscapes.CAMERA
    intrinsics = np.array(
        [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
    )
    pitch = camera.pitch + rng.normal(0, 0.015)
    yaw = rng.normal(0, 0.035)
    sin, cos = math.sin(pitch), math.cos(pitch)
    tilt = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ np.diag([1, -1, 1])
    sin, cos = math.sin(yaw), math.cos(yaw)
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    position = np.array([x, camera.height * rng.uniform(0.9, 1.2), 0.0])
    return View(intrinsics, tilt @ turn, position)


def sample_weather(rng: np.random.Generator) -> rendering.Weather:
    """Light, sky and haze, from overcast to a low sun."""
    kind = rng.choice(len(WEATHERS), p=[row[0] for row in WEATHERS])
    _, zenith, low, ambient, sunlight, heights, covers, lamps = WEATHERS[kind]
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(*heights)
    horizon = np.array(low) * rng.uniform(0.7, 1.5)
    flat = math.cos(height)
    return rendering.Weather(
        zenith=np.array(zenith) * rng.uniform(0.7, 1.5),
        horizon=horizon,
        clouds=horizon * rng.uniform(0.6, 1.4),
        ambient=np.array(ambient),
        sunlight=np.array(sunlight),
        sun=np.array(
            [flat * math.sin(azimuth), math.sin(height), flat * math.cos(azimuth)]
        ),
        cover=rng.uniform(*covers),
        haze=0.0005 * 20 ** rng.random(),
        lamps=lamps,
    )


def compose(rng: np.random.Generator) -> tuple[Scene, rendering.Weather]:
    """A scene with everything in it but the image size."""
    street = sample_street(rng)
    weather = sample_weather(rng)
    lane = rng.integers(street.lanes) + 0.5
    x = lane * street.lane + rng.normal(0, 0.3)
    view = sample_view(rng, x)
    scene = Scene(rng, view)
    add_ground(scene, street)
    style = rng.choice(["city", "suburb", "park"], p=[0.5, 0.3, 0.2])
    add_skyline(scene, street)
    for index in (0, 1):
        add_frontage(scene, street, index, style)
        add_parked(scene, street, index)
        add_pavement_life(scene, street, index)
    add_traffic(scene, street, weather.lamps)
    add_crossing_people(scene, street)
    add_borders(scene)
    return scene, weather


def render_scene(seed: Any, image_size: Size = (128, 256)) -> dict[str, np.ndarray]:
    """Renders one street scene.

    Args:
        seed: int or sequence of ints for `np.random.default_rng`. It fixes the
            scene; the image size only samples it.
        image_size: `(height, width)`, any.

    Returns:
        dict of the arrays `image`, `semantic`, `instance` and `disparity`, as
        Cityscapes stores them; see `rendering.render`.
    """
    scene, weather = compose(np.random.default_rng(seed))
    return rendering.render(scene, weather, image_size)


def scene_seed(seed: int, split: str, index: int) -> tuple[int, int, int]:
    """Seed of one scene; no two of a split or of two splits share one."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return seed, SPLITS.index(split), index


def frame_id(index: int) -> str:
    """Cityscapes' kind of name, `{city}_{sequence}_{frame}`, of a scene of a split."""
    return f"streets_{index:06d}_000019"


def write_cityscapes_tree(
    root: PathLike,
    split_sizes: Mapping[str, int],
    image_size: Size = (128, 256),
    seed: int = 0,
    unlabeled: Sequence[str] = ("test",),
    progress: bool = True,
) -> None:
    """Writes scenes as a Cityscapes tree of PNG files.

    Args:
        root: folder to write to.
        split_sizes: dict of split name to number of scenes.
        image_size: `(height, width)`.
        seed: int.
        unlabeled: splits that get images only.
        progress: bool, whether to show a progress bar.
    """
    for split, count in split_sizes.items():
        kinds = ["image"] if split in unlabeled else list(cityscapes.FILES)
        for index in tqdm(range(count), desc=split, disable=not progress):
            scene = render_scene(scene_seed(seed, split, index), image_size)
            for kind in kinds:
                path = cityscapes.frame_path(root, split, frame_id(index), kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(scene[kind]))
