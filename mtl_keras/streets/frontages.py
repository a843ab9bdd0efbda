"""What lines a street: houses, gaps, parks and hedges, and a skyline behind them."""

import math

import numpy as np

from mtl_keras.streets.objects import MINERAL, PAINTED, PLANT, add_tree
from mtl_keras.streets.plan import Street, strip
from mtl_keras.streets.surfaces import (
    BRICK,
    GRAIN,
    LEAF,
    PLAIN,
    PLANKS,
    SIDES,
    UP,
    Brush,
    Paint,
    Pose,
    Scene,
    Windows,
    rectangle,
    scaled,
)

# Chances of building, gap, park and hedge beside a street.
FRONTAGES = {
    "city": (0.88, 0.06, 0.03, 0.03),
    "suburb": (0.55, 0.15, 0.13, 0.17),
    "park": (0.2, 0.15, 0.4, 0.25),
}


def add_frontage(scene: Scene, street: Street, index: int, style: str) -> None:
    """What lines the street on one side: houses, gaps, parks, hedges."""
    rng, side = scene.rng, SIDES[index]
    setback = rng.uniform(0, 5) if style == "suburb" else 0
    line = street.walk[index] + setback
    terrain = scene.identity("terrain")
    if setback:
        outline = strip(street, side * street.walk[index], side * (line + 1), -5, 150)
        scene.pave(outline, terrain, scene.paint(PLANT, texture=LEAF), 0.1)
    kinds = ["building", "gap", "park", "hedge"]
    chances = FRONTAGES[style]
    for start, end in frontage_spans(rng, street.junctions[index], style != "city"):
        kind = kinds[rng.choice(4, p=chances)]
        if end < 6:
            continue
        if kind == "building":
            depth = rng.uniform(0, 2) if style == "suburb" else rng.uniform(0, 0.4)
            add_building(scene, street, side, line + depth, start, end, style)
            continue
        if kind == "park":
            outline = strip(street, side * line, side * (line + 30), start, end)
            paint = scene.paint(PLANT, texture=LEAF, tile=4, contrast=0.3)
            scene.pave(outline, terrain, paint, 0.1)
        trees = rng.poisson({"park": 3, "gap": 1}.get(kind, 2))
        if kind == "park":
            kind = ["hedge", "gap"][rng.integers(2)]
        if kind == "hedge":
            add_hedge(scene, street, side * line, max(start, 1.0), end)
        for _ in range(trees):
            offset = side * (line + rng.uniform(2, 12))
            pose = street.pose(offset, rng.uniform(max(start, 3), end))
            add_tree(scene, pose, rng.uniform(4, 11))


def frontage_spans(
    rng: np.random.Generator, junction: tuple[float, float] | None, gaps: bool
) -> list[tuple[float, float]]:
    """Stretches of z between the pieces of a frontage, free of the side street."""
    spans, z = [], rng.uniform(-8, 2)
    while z < 140:
        end = z + rng.uniform(9, 26)
        if junction and z < junction[1] and end > junction[0]:
            if junction[0] - z < 5:
                z = junction[1] + rng.uniform(0.5, 2)
                continue
            end = junction[0] - 1
        spans.append((z, end))
        z = end + (rng.uniform(1, 6) if gaps and rng.random() < 0.5 else 0)
    return spans


def add_building(
    scene: Scene,
    street: Street,
    side: int,
    offset: float,
    z0: float,
    z1: float,
    style: str,
) -> None:
    """A house: roof, the end towards the camera, and the facade along the street."""
    rng = scene.rng
    storeys = int(rng.integers(1, 4) if style == "suburb" else rng.integers(2, 8))
    storey = rng.uniform(2.8, 3.8)
    height = storey * storeys + rng.uniform(0.3, 1.2)
    depth = rng.uniform(8, 14)
    front, length = street.upright(side * offset, z0, z1)
    along, corner = front[:3], front[6:]
    back = (side * along[2], 0.0, -side * along[0])
    x = corner[0] + (along[0] * length + back[0] * depth) / 2
    z = corner[2] + (along[2] * length + back[2] * depth) / 2
    scene.begin(Pose(x, 0.0, z, along[0], along[2]), depth / 2, length / 2, height)
    building = scene.identity("building")
    wall = scene.paint(
        MINERAL,
        texture=[PLAIN, PLAIN, BRICK, GRAIN, PLANKS][rng.integers(5)],
        tile=rng.uniform(2, 4),
        contrast=rng.uniform(0.05, 0.3),
    )
    end = rectangle(0, 0, depth, height)
    ridge = rng.uniform(0.3, 0.7) * depth if rng.random() < 0.6 else 0
    if ridge:
        end.insert(3, (depth / 2, height + ridge))
        slope = math.hypot(depth / 2, ridge)
        up = (back[0] * depth / 2 / slope, ridge / slope, back[2] * depth / 2 / slope)
        eave = (corner[0], height, corner[2])
        toward = (scene.view.position[0] - corner[0]) * back[0] - corner[2] * back[2]
        if ridge * toward < (scene.view.position[1] - height) * depth / 2:
            roof = scene.paint(MINERAL, texture=BRICK, contrast=0.2)
            scene.add(along + up + eave, rectangle(0, 0, length, slope), building, roof)
    shops = rng.random() < 0.6
    windows = Windows(
        rng.uniform(1.6, 3.2), storey, rng.uniform(0.35, 0.75), rng.uniform(0.4, 0.65),
        storey if shops else 0.6, rng.uniform(0, 99),
    )  # fmt: skip
    blank = None if rng.random() < 0.4 else windows
    scene.add(back + UP + corner, end, building, wall, blank)
    scene.add(front, rectangle(0, 0, length, height), building, wall, windows)
    draw = scene.brush(front, building)
    trim = wall._replace(color=scene.color(MINERAL))
    draw(rectangle(0, height - 0.4, length, height), trim)
    if shops:
        add_ground_floor(scene, draw, length, storey, trim)


def add_ground_floor(
    scene: Scene, draw: Brush, length: float, storey: float, trim: Paint
) -> None:
    """Shop windows under a sign, or doors and small windows."""
    rng = scene.rng
    glass = Paint(scaled(scene.color(MINERAL), 0.4), contrast=0.3, unmatched=0.3)
    glass = glass._replace(glow=1.5 * (rng.random() < 0.3))
    shop = rng.random() < 0.5
    base = scene.paint(MINERAL, contrast=0.2)
    draw(rectangle(0, 0, length, 0.5 + 0.5 * storey * shop), base)
    pitch = rng.uniform(2.2, 4)
    for s in np.arange(0.4, length - pitch, pitch).tolist():
        if shop:
            draw(rectangle(s, 0.5, s + 0.85 * pitch, 0.75 * storey), glass)
        elif rng.random() < 0.3:
            draw(rectangle(s, 0, s + 1.1, 2.2), trim)
        else:
            draw(rectangle(s, 1.0, s + 0.5 * pitch, 2.3), glass)
    if shop:
        sign = scene.paint(PAINTED, glow=0.3, tile=1.5, contrast=0.5)
        draw(rectangle(0.2, 0.78 * storey, length - 0.2, storey), sign)


def add_hedge(
    scene: Scene, street: Street, offset: float, z0: float, z1: float
) -> None:
    """A hedge along the street."""
    rng = scene.rng
    height = rng.uniform(0.8, 2.2)
    paint = scene.paint(PLANT, texture=LEAF, tile=rng.uniform(1.5, 3), contrast=0.35)
    frame, length = street.upright(offset, z0, z1)
    scene.begin(street.pose(offset, (z0 + z1) / 2), 0.3, length / 2, height)
    s = np.linspace(length, 0, max(4, int(length / 0.7)))
    top = np.stack([s, height + rng.normal(0, 0.15, len(s))], 1)
    outline = rectangle(0, 0, length, height)[:2] + top.tolist()
    scene.brush(frame, scene.identity("vegetation"))(outline, paint)


def add_skyline(scene: Scene, street: Street) -> None:
    """Roofs and tree tops in the distance, perhaps a house that ends the street."""
    rng = scene.rng
    for z in (260, 190, 130) if rng.random() < 0.5 else (260, 190):
        houses = rng.random() < 0.5
        pose = Pose.of(float(street.bend(z)), 0.0, z, 0.0)
        scene.begin(pose, 200, 0.5, 1)
        s = np.linspace(-200, 200, 80)
        t = rng.uniform(2, 8) + rng.gamma(3, 1.5, 80)
        if houses:
            t = np.repeat(t[::2], 2)
            s[1::2] = np.append(s[2::2], 200)
        outline = np.stack([s, t], 1).tolist() + [(200, 0), (-200, 0)]
        identity = scene.identity("building" if houses else "vegetation")
        material = MINERAL if houses else PLANT
        paint = scene.paint(material, texture=LEAF, tile=12, contrast=0.3)
        windows = Windows(4.0, 3.5, 0.4, 0.5, 1.0, z) if houses else None
        scene.add(pose.across(0), outline, identity, paint, windows)
    if rng.random() < 0.25:
        pose = street.pose(0.0, rng.uniform(70, 125))
        width, storeys = rng.uniform(15, 40), int(rng.integers(2, 6))
        scene.begin(pose, width, 5, 3.2 * storeys)
        wall = scene.paint(MINERAL, texture=BRICK, contrast=0.15)
        outline = rectangle(-width, 0, width, 3.2 * storeys + 0.5)
        windows = Windows(2.6, 3.2, 0.5, 0.5, 1.0, pose.z)
        building = scene.identity("building")
        scene.add(pose.across(0), outline, building, wall, windows)
