"""The street itself: its plan and its ground."""

import math
from typing import Any, NamedTuple

import numpy as np

from mtl_keras.streets.objects import PLANT
from mtl_keras.streets.surfaces import (
    GRAIN,
    LEAF,
    SIDES,
    SLABS,
    UP,
    Frame,
    Outline,
    Paint,
    Pose,
    Scene,
    ellipse,
    rectangle,
    scaled,
)

FAR = 400.0  # end of the ground plane, metres
KERB = 0.12  # height of the pavement, metres

# Materials of the ground, with brightness and tints as in `objects`.
ROAD = (
    (0.05, 0.16),
    ((1, 1, 1), (1, 1, 1), (1, 1, 1), (0.93, 1, 1.1), (1.1, 1, 0.88))
    + ((1.3, 0.95, 0.75),),
)
PAVING = ((0.12, 0.45), ROAD[1] + ((1.35, 0.9, 0.75), (1.2, 1.05, 0.7)))


class Street(NamedTuple):
    """Plan of a street: curvature in 1/m, width of a lane, lanes per direction, and
    for the left and the right side the distances in metres from the centre line to
    the kerb, the end of the verge and the end of the pavement; `junctions` holds
    the z range of a side street per side, or None."""

    curvature: float
    lane: float
    lanes: int
    kerb: tuple
    verge: tuple
    walk: tuple
    junctions: tuple

    def bend(self, z: Any) -> Any:
        """Lateral position of the centre line at z."""
        z = np.maximum(z, 0)
        return self.curvature * np.where(z < 100, z * z / 2, 100 * z - 5000)

    def upright(self, offset: float, z0: float, z1: float) -> tuple[Frame, float]:
        """Upright plane along the street from z0 to z1, and its length."""
        x0, x1 = (float(self.bend(z)) + offset for z in (z0, z1))
        length = math.hypot(x1 - x0, z1 - z0)
        along = ((x1 - x0) / length, 0.0, (z1 - z0) / length)
        return along + UP + (x0, 0.0, z0), length

    def pose(
        self, offset: float, z: float, turn: float = 0.0, base: float = 0.0
    ) -> Pose:
        """Pose beside the centre line, heading along the street plus `turn`."""
        heading = math.atan(self.curvature * min(max(z, 0.0), 100.0))
        return Pose.of(float(self.bend(z)) + offset, base, z, heading + turn)


def sample_street(rng: np.random.Generator) -> Street:
    """Draws the plan of a street; half of them are straight."""
    lane = rng.uniform(2.9, 3.7)
    lanes = 1 + int(rng.random() < 0.35)
    parking = np.where(rng.random(2) < 0.5, 2.2, 0.3)
    green = np.where(rng.random(2) < 0.3, rng.uniform(0.8, 3, 2), 0)
    kerb = lane * lanes + parking
    walk = kerb + green + rng.uniform(2, 5.5, 2)
    starts = rng.uniform(12, 50, 2)
    spans = [(start, start + rng.uniform(6, 10)) for start in starts.tolist()]
    if rng.random() < 0.5:  # a crossroads rather than two side streets
        spans[1] = spans[0]
    junctions = tuple(span if rng.random() < 0.4 else None for span in spans)
    curvature = rng.choice([-1, 1]) / rng.uniform(90, 400) * (rng.random() < 0.5)
    edges = (tuple(edge.tolist()) for edge in (kerb, kerb + green, walk))
    kerbs, verges, walks = edges
    return Street(float(curvature), lane, lanes, kerbs, verges, walks, junctions)


def strip(
    street: Street, inner: float, outer: float, start: float, end: float
) -> Outline:
    """Outline on the ground between two offsets from the centre line."""
    steps = 2 if street.curvature == 0 else max(2, min(12, int((end - start) / 5)))
    z = np.linspace(start, min(end, 100), steps)
    z = np.append(z, end) if end > 100 else z
    bend = street.bend(z)
    edges = [np.stack([bend + inner, z], 1), np.stack([bend + outer, z], 1)[::-1]]
    return np.concatenate(edges).tolist()


def add_ground(scene: Scene, street: Street) -> None:
    """Road with its markings, then verge, pavement and kerb on both sides."""
    rng = scene.rng
    asphalt = scene.paint(
        ROAD,
        texture=SLABS if rng.random() < 0.15 else GRAIN,
        tile=rng.uniform(1.5, 6),
        contrast=rng.uniform(0.08, 0.25),
        unmatched=rng.uniform(0.02, 0.22),
    )
    beyond = scene.identity("terrain" if rng.random() < 0.5 else "sidewalk")
    scene.pave(rectangle(-FAR, -5, FAR, FAR), beyond, scene.paint(PLANT, texture=LEAF))
    road = strip(street, -street.kerb[0], street.kerb[1], -5, FAR)
    scene.pave(road, scene.identity("road"), asphalt)
    add_markings(scene, street, asphalt)
    for index in (0, 1):
        add_roadside(scene, street, index, asphalt)


def add_markings(scene: Scene, street: Street, asphalt: Paint) -> None:
    """Parking lanes, edge and centre lines, a zebra crossing, patches."""
    rng, lane, lanes = scene.rng, street.lane, street.lanes
    road, edge = scene.identity("road"), street.lane * street.lanes
    white = rng.uniform(0.25, 0.8)
    yellow = 0.4 if rng.random() < 0.15 else 0.95
    line = asphalt._replace(color=(white, 0.95 * white, yellow * white))

    def pave_line(offset, width, start, end):
        outline = strip(street, offset - width / 2, offset + width / 2, start, end)
        scene.pave(outline, road, line)

    for index, side in enumerate(SIDES):
        if street.kerb[index] > edge + 1 and rng.random() < 0.3:
            outline = strip(street, side * edge, side * street.kerb[index], -5, 120)
            paint = scene.paint(ROAD, texture=SLABS, tile=2)
            scene.pave(outline, scene.identity("parking"), paint)
        if rng.random() < 0.5:
            pave_line(side * edge, 0.15, -5, 120)
    dash, gap = rng.uniform(2, 4), rng.uniform(3, 6)
    solid, dashed = rng.random(2) < (0.2, 0.85)
    for offset in range(1 - lanes, lanes):
        if offset == 0 and solid:
            pave_line(0, 0.14, -5, 120)
        elif dashed:
            for z in np.arange(rng.uniform(1, 5), 75, dash + gap):
                pave_line(offset * lane, 0.16, z, z + dash)
    zebra = [span[0] - 4.5 for span in street.junctions if span]
    if not zebra and rng.random() < 0.25:
        zebra = [rng.uniform(8, 40)]
    if zebra and rng.random() < 0.7:
        for x in np.arange(-edge + 0.5, edge - 0.2, 1.0):
            pave_line(x, 0.5, zebra[0], zebra[0] + 3.2)
    for _ in range(rng.integers(4)):  # repairs and wet patches
        x, z = rng.uniform(-lane, lane), rng.uniform(4, 40)
        color = scaled(asphalt.color, rng.uniform(0.6, 1.3))
        outline = ellipse(x, z, rng.uniform(0.4, 1.2), rng.uniform(0.5, 4), corners=7)
        scene.pave(outline, road, asphalt._replace(color=color, unmatched=0.6))


def add_roadside(scene: Scene, street: Street, index: int, asphalt: Paint) -> None:
    """Verge, pavement, kerb stones and a side street of one side."""
    rng, side = scene.rng, SIDES[index]
    kerb, verge, walk = (e[index] for e in (street.kerb, street.verge, street.walk))
    slabs = scene.paint(
        PAVING,
        texture=SLABS if rng.random() < 0.7 else GRAIN,
        tile=rng.uniform(1.5, 5),
        contrast=rng.uniform(0.08, 0.3),
        unmatched=0.1,
    )
    grass = scene.paint(PLANT, texture=LEAF, contrast=0.3, unmatched=0.05)
    stone = slabs._replace(color=scene.color(PAVING))
    sidewalk, terrain = scene.identity("sidewalk"), scene.identity("terrain")
    junction = street.junctions[index]
    spans = [(-5, FAR)]
    if junction:
        spans = [(junction[1], FAR), (-5, junction[0])]
        x = float(street.bend(sum(junction) / 2))
        left, right = sorted((x + side * kerb, x + side * FAR))
        outline = rectangle(left, junction[0], right, junction[1])
        scene.pave(outline, scene.identity("road"), asphalt)
    layers = [(verge, walk + 1, sidewalk, slabs), (kerb, kerb + 0.18, sidewalk, stone)]
    if verge > kerb:
        layers.insert(0, (kerb, verge + 0.1, terrain, grass))
    for start, end in spans:
        for inner, outer, identity, paint in layers:
            outline = strip(street, side * inner, side * outer, start, end)
            scene.pave(outline, identity, paint, KERB)
        steps = 2 if street.curvature == 0 else 9
        ends = np.linspace(max(start, 0), min(end, 90), steps).tolist()
        for z0, z1 in list(zip(ends[:-1], ends[1:]))[::-1]:
            frame, length = street.upright(side * kerb, z0, z1)
            scene.add(frame, rectangle(0, 0, length, KERB), sidewalk, stone)
