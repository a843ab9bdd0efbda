"""Renders synthetic street scenes with the labels and geometry of Cityscapes.

A scene is a few hundred flat surfaces in three dimensions. Each is a polygon in
the `(s, t)` coordinates, in metres, of a plane `origin + s * a + t * b`. They are
painted far to near into one buffer of surface numbers, and everything else (class,
instance, inverse depth, colour) is looked up by surface, so that all of it agrees
at every pixel. With the camera matrix `K`, a plane has the image matrix
`M = K [a b origin]`, and `inv(M) [u, v, 1] = [s, t, 1] / Z` gives the texture
coordinates and the exact inverse depth of a pixel.

World axes: x to the right, y up, z along the street, in metres, with the camera
above `z = 0`. Colours are linear reflectances until the last step.
"""

import functools
import math
from collections import Counter
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from mtl_keras import cityscapes
from mtl_keras.cityscapes import FIRST_INSTANCE_ID, LABEL_IDS, SKY_ID

VERSION = 1  # of the scenes; raise it when a seed gives another scene than before
SUPERSAMPLE = 2  # colour samples per pixel and axis; labels take one of them
NEAR = 0.5  # surfaces are clipped at this depth, metres
FAR = 400.0  # end of the ground plane, metres
KERB = 0.12  # height of the pavement, metres
SPLITS = ("train", "val", "test")
UP = (0.0, 1.0, 0.0)
SIDES = (-1, 1)  # left and right

PLAIN, GRAIN, BRICK, SLABS, LEAF, PLANKS = range(6)
TILE = 128  # texels along one edge of a texture

# Ranges of brightness and tints of materials. They overlap on purpose: shape and
# position have to tell the classes apart, not colour.
MINERAL = (
    (0.04, 0.55),
    ((1, 1, 1), (1, 1, 1), (1.1, 1, 0.85), (1.25, 0.95, 0.7), (1.5, 0.8, 0.6))
    + ((0.95, 1.05, 0.85), (0.9, 1.1, 0.65), (0.85, 1, 1.2), (1.2, 1.05, 0.6)),
)
ROAD = (
    (0.04, 0.4),
    ((1, 1, 1), (1, 1, 1), (0.93, 1, 1.1), (1.1, 1, 0.88), (1.3, 0.95, 0.75))
    + ((0.95, 1.05, 0.92),),
)
PAVING = ((0.05, 0.5), ROAD[1] + ((1.35, 0.9, 0.75), (1.2, 1.05, 0.7)))
PLANT = (
    (0.03, 0.35),
    ((0.6, 1.15, 0.3), (0.65, 1.15, 0.35), (0.75, 1.1, 0.45), (0.95, 1.1, 0.35))
    + ((1.2, 1, 0.4), (1.5, 0.75, 0.4), (1.1, 1, 0.85), (0.75, 1, 0.75)),
)
PAINTED = (
    (0.02, 0.7),
    ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1.7, 0.5, 0.4), (0.5, 0.8, 1.5))
    + ((0.7, 1.1, 0.6), (1.4, 1.1, 0.5), (1.2, 1, 0.75), (0.8, 0.9, 1.2)),
)
SKIN = ((0.06, 0.5), ((1.25, 0.95, 0.75), (1.3, 0.9, 0.7)))

# Chance, colours of the sky overhead and at the horizon, of the light of the sky and
# of the sun, and ranges of the sun's height (radians) and of the cloud cover, then the
# brightness of lamps: a clear day, a grey one, dusk, nightfall.
WEATHERS = (
    (0.45, (0.16, 0.3, 0.6), (0.5, 0.6, 0.75), (0.4, 0.45, 0.55), (1.4, 1.2, 0.95),
     (0.35, 1.1), (0.0, 0.7), 0.0),
    (0.27, (0.5, 0.5, 0.5), (0.55, 0.55, 0.56), (0.85, 0.85, 0.85), (0.15, 0.15, 0.15),
     (0.3, 0.9), (0.3, 1.0), 0.3),
    (0.17, (0.12, 0.16, 0.3), (0.7, 0.4, 0.22), (0.3, 0.28, 0.33), (0.8, 0.5, 0.3),
     (0.1, 0.4), (0.0, 0.9), 1.5),
    (0.11, (0.03, 0.035, 0.05), (0.1, 0.09, 0.085), (0.4, 0.35, 0.28), (0.1, 0.1, 0.1),
     (0.3, 0.4), (0.2, 1.0), 2.5),
)  # fmt: skip

# Chances of building, gap, park, wall, fence and hedge beside a street.
FRONTAGES = {
    "city": (0.87, 0.04, 0.03, 0.03, 0.02, 0.01),
    "suburb": (0.5, 0.12, 0.12, 0.08, 0.09, 0.09),
    "park": (0.2, 0.08, 0.3, 0.13, 0.16, 0.13),
}


class Paint(NamedTuple):
    """How a surface looks: linear reflectance, light of its own in units of that
    reflectance, texture, edge of a texture tile in metres, contrast, and how often
    a stereo matcher fails on it (0..1)."""

    color: tuple
    glow: float = 0.0
    texture: int = PLAIN
    tile: float = 3.0
    contrast: float = 0.12
    unmatched: float = 0.0


BLACK = Paint((0.02, 0.02, 0.022))
WHITE = Paint((0.7, 0.7, 0.68))


class Windows(NamedTuple):
    """Rows of windows on a facade: metres from one to the next and from storey to
    storey, shares of these that are glass, height of the lowest row, a number that
    sets which ones are bright."""

    pitch: float
    storey: float
    wide: float
    tall: float
    bottom: float
    key: float


class View(NamedTuple):
    """A camera: intrinsics `(3, 3)` in pixels, rotation `(3, 3)` from world to
    camera axes (x right, y down, z forward), position `(3,)` in metres."""

    intrinsics: np.ndarray
    rotation: np.ndarray
    position: np.ndarray


class Weather(NamedTuple):
    """Light of a scene: colours `(3,)` of sky and lights, direction `(3,)` to the
    sun, cloud cover 0..1, haze per metre, and how bright lamps are."""

    zenith: np.ndarray
    horizon: np.ndarray
    clouds: np.ndarray
    ambient: np.ndarray
    sunlight: np.ndarray
    sun: np.ndarray
    cover: float
    haze: float
    lamps: float


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

    def bend(self, z):
        """Lateral position of the centre line at z."""
        z = np.maximum(z, 0)
        return self.curvature * np.where(z < 100, z * z / 2, 100 * z - 5000)

    def upright(self, offset, z0, z1):
        """Upright plane along the street from z0 to z1, and its length."""
        x0, x1 = (float(self.bend(z)) + offset for z in (z0, z1))
        length = math.hypot(x1 - x0, z1 - z0)
        along = ((x1 - x0) / length, 0.0, (z1 - z0) / length)
        return along + UP + (x0, 0.0, z0), length

    def pose(self, offset, z, turn=0.0, base=0.0):
        """Pose beside the centre line, heading along the street plus `turn`."""
        heading = math.atan(self.curvature * min(max(z, 0.0), 100.0))
        return Pose.of(float(self.bend(z)) + offset, base, z, heading + turn)


class Pose(NamedTuple):
    """Place of an object on the ground and its heading, clockwise from z."""

    x: float
    y: float
    z: float
    sin: float
    cos: float

    @classmethod
    def of(cls, x, y, z, heading):
        return cls(x, y, z, math.sin(heading), math.cos(heading))

    def turn(self, vector):
        """World axes of a `(right, up, forward)` vector."""
        right, up, forward = vector
        x = self.cos * right + self.sin * forward
        return x, up, self.cos * forward - self.sin * right

    def point(self, vector):
        x, y, z = self.turn(vector)
        return self.x + x, self.y + y, self.z + z

    def frame(self, origin, a, b):
        """Plane through a local point along two local unit vectors."""
        return self.turn(a) + self.turn(b) + self.point(origin)

    def side(self, right):
        """Upright plane along the heading; s is forward, t is up."""
        return self.frame((right, 0, 0), (0, 0, 1), UP)

    def across(self, forward):
        """Upright plane across the heading; s is right, t is up."""
        return self.frame((0, 0, forward), (1, 0, 0), UP)

    def local(self, x, z):
        """`(right, forward)` coordinates of a world point."""
        dx, dz = x - self.x, z - self.z
        return self.cos * dx - self.sin * dz, self.sin * dx + self.cos * dz


class Scene:
    """Collects the surfaces of a scene: ground first, then one group per object."""

    def __init__(self, rng, view):
        self.rng = rng
        self.view = view
        self.frames = []
        self.outlines = []
        self.identities = []
        self.paints = []
        self.windows = {}  # surface number to the layout of its windows
        self.level = []  # surfaces that objects stand on
        self.starts = []  # first surface of each object
        self.boxes = []  # x and z ranges of each object, for the painting order
        self.shadows = []  # corners on the ground, height of what casts it
        self.screen = []  # outline 0..1 in the image, identity, paint; no depth
        self.counts = Counter()

    def identity(self, name):
        """Label id and id in the instance map, of a new object if it can be one."""
        label = cityscapes.LABELS[LABEL_IDS[name]]
        if not label.has_instances:
            return label.id, label.id
        self.counts[name] += 1
        return label.id, label.id * FIRST_INSTANCE_ID + self.counts[name] - 1

    def begin(self, pose, half_width, half_length, height):
        """Starts an object that stands on a rectangle around its pose."""
        x = abs(pose.cos) * half_width + abs(pose.sin) * half_length
        z = abs(pose.sin) * half_width + abs(pose.cos) * half_length
        self.starts.append(len(self.frames))
        self.boxes.append((pose.x - x, pose.x + x, pose.z - z, pose.z + z))
        corners = [(-1, -1), (-1, 1), (1, 1), (1, -1)]
        corners = [pose.point((i * half_width, 0, j * half_length)) for i, j in corners]
        self.shadows.append(([(x, z) for x, _, z in corners], height))

    def add(self, frame, outline, identity, paint, windows=None):
        if windows is not None:
            self.windows[len(self.frames)] = windows
        self.frames.append(frame)
        self.outlines.append(outline)
        self.identities.append(identity)
        self.paints.append(paint)

    def brush(self, frame, identity):
        """Function that adds `(outline, paint)` on one plane for one object."""
        return lambda outline, paint: self.add(frame, outline, identity, paint)

    def pave(self, outline, identity, paint, height=0.0):
        """Adds a level surface, painted before all objects; `(s, t)` is `(x, z)`."""
        self.level.append(len(self.frames))
        frame = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, height, 0.0)
        self.add(frame, outline, identity, paint)

    def billboard(self, pose):
        """Upright plane through a pose that faces the camera; s is right."""
        dx, dz = pose.x - self.view.position[0], pose.z
        distance = math.hypot(dx, dz)
        return (dz / distance, 0, -dx / distance) + UP + (pose.x, pose.y, pose.z)

    def color(self, material):
        (low, high), tints = material
        value = low * (high / low) ** self.rng.random()
        tint = tints[self.rng.integers(len(tints))]
        red, green, blue = 0.88 + 0.24 * self.rng.random(3)
        return value * tint[0] * red, value * tint[1] * green, value * tint[2] * blue

    def paint(self, material, **options):
        return Paint(self.color(material), **options)


def scaled(color, factor):
    return color[0] * factor, color[1] * factor, color[2] * factor


def rectangle(left, bottom, right, top):
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


@functools.cache
def unit_circle(corners):
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def ellipse(s, t, radius_s, radius_t=None, corners=10):
    radius_t = radius_s if radius_t is None else radius_t
    return (unit_circle(corners) * (radius_s, radius_t) + (s, t)).tolist()


def ring(s, t, radius, thickness):
    inner = ellipse(s, t, radius - thickness, corners=14)
    outer = ellipse(s, t, radius, corners=14)
    return outer + outer[:1] + inner[:1] + inner[::-1]


def triangle(t, r):
    return [(-r, t - 0.6 * r), (r, t - 0.6 * r), (0, t + 1.1 * r)]


def bar(start, end, width):
    """Thick line between two points, as a quadrilateral."""
    ds, dt = end[0] - start[0], end[1] - start[1]
    scale = 0.5 * width / max(math.hypot(ds, dt), 1e-6)
    s, t = -dt * scale, ds * scale
    return [
        (start[0] + s, start[1] + t),
        (start[0] - s, start[1] - t),
        (end[0] - s, end[1] - t),
        (end[0] + s, end[1] + t),
    ]


# ---------------------------------------------------------------------------
# Ground


def sample_street(rng):
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
    return Street(float(curvature), lane, lanes, *edges, junctions)


def strip(street, inner, outer, start, end):
    """Outline on the ground between two offsets from the centre line."""
    steps = 2 if street.curvature == 0 else max(2, min(12, int((end - start) / 5)))
    z = np.linspace(start, min(end, 100), steps)
    z = np.append(z, end) if end > 100 else z
    bend = street.bend(z)
    edges = [np.stack([bend + inner, z], 1), np.stack([bend + outer, z], 1)[::-1]]
    return np.concatenate(edges).tolist()


def add_ground(scene, street):
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


def add_markings(scene, street, asphalt):
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


def add_roadside(scene, street, index, asphalt):
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


# ---------------------------------------------------------------------------
# Buildings and plants


def add_frontage(scene, street, index, style):
    """What lines the street on one side: houses, gaps, parks, walls, fences."""
    rng, side = scene.rng, SIDES[index]
    setback = rng.uniform(0, 5) if style == "suburb" else 0
    line = street.walk[index] + setback
    terrain = scene.identity("terrain")
    if setback:
        outline = strip(street, side * street.walk[index], side * (line + 1), -5, 150)
        scene.pave(outline, terrain, scene.paint(PLANT, texture=LEAF), 0.1)
    kinds = ["building", "gap", "park", "wall", "fence", "hedge"]
    chances = FRONTAGES[style]
    for start, end in frontage_spans(rng, street.junctions[index], style != "city"):
        kind = kinds[rng.choice(6, p=chances)]
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
            kind = ["wall", "fence", "hedge", "gap"][rng.integers(4)]
        if kind != "gap":
            add_barrier(scene, street, side * line, max(start, 1.0), end, kind)
        for _ in range(trees):
            offset = side * (line + rng.uniform(2, 12))
            pose = street.pose(offset, rng.uniform(max(start, 3), end))
            add_tree(scene, pose, rng.uniform(4, 11))


def frontage_spans(rng, junction, gaps):
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


def add_building(scene, street, side, offset, z0, z1, style):
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


def add_ground_floor(scene, draw, length, storey, trim):
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


def add_barrier(scene, street, offset, z0, z1, kind):
    """Wall, fence or hedge along the street."""
    rng = scene.rng
    low, high, texture, contrast, material = {
        "wall": (1, 3, BRICK, 0.3, MINERAL),
        "fence": (0.9, 2, PLANKS, 0.7, MINERAL),
        "hedge": (0.8, 2.2, LEAF, 0.35, PLANT),
    }[kind]
    height = rng.uniform(low, high)
    tile = rng.uniform(1.5, 3)
    paint = scene.paint(material, texture=texture, tile=tile, contrast=contrast)
    frame, length = street.upright(offset, z0, z1)
    scene.begin(street.pose(offset, (z0 + z1) / 2), 0.3, length / 2, height)
    draw = scene.brush(frame, scene.identity("vegetation" if kind == "hedge" else kind))
    outline = rectangle(0, 0, length, height)
    if kind == "hedge":
        s = np.linspace(length, 0, max(4, int(length / 0.7)))
        top = np.stack([s, height + rng.normal(0, 0.15, len(s))], 1)
        outline[2:] = top.tolist()
    draw(outline, paint)
    if kind == "fence":
        post = paint._replace(color=scaled(paint.color, 0.6), contrast=0.1)
        for s in np.arange(0, length, 2.5).tolist():
            draw(rectangle(s, 0, s + 0.1, height + 0.1), post)


def add_tree(scene, pose, height):
    """Trunk, branches and a canopy of jagged clumps lit from above."""
    rng = scene.rng
    scene.begin(pose, 0.3, 0.3, 0.6 * height)
    draw = scene.brush(scene.billboard(pose), scene.identity("vegetation"))
    bark = Paint(scaled(scene.color(MINERAL), 0.6), 0, PLANKS, 1, 0.4)
    slim = rng.random() < 0.2
    crown = height * (0.15 if slim else rng.uniform(0.22, 0.4))
    radius_s = height * (0.12 if slim else rng.uniform(0.22, 0.42))
    radius_t = (height - crown) / 2
    girth, top = 0.03 * height + 0.05, 0.7 * height
    draw([(-girth, 0), (girth, 0), (0.3 * girth, top), (-0.3 * girth, top)], bark)
    for side in SIDES:
        draw(bar((0, 0.9 * crown), (side * 0.6 * radius_s, top), 0.5 * girth), bark)
    count = int(np.clip(260 / math.hypot(pose.x, pose.z), 5, 14))
    angle, reach = 2 * np.pi * rng.random(count), 0.7 * np.sqrt(rng.random(count))
    scale, light = rng.uniform(0.25, 0.5, count), 0.85 + 0.3 * rng.random(count)
    reach[0], scale[0], light[0] = 0, 0.85, 0.6  # the shaded inside
    center = reach * (np.cos(angle), np.sin(angle))
    light += 0.4 * center[1]
    clumps = unit_circle(16) * rng.uniform(0.75, 1.1, (count, 16, 1))
    clumps = clumps * scale[:, None, None] + center.T[:, None]
    clumps = (clumps * (radius_s, radius_t) + (0, crown + radius_t)).tolist()
    leaves = scene.paint(
        PLANT, texture=LEAF, tile=2.5, contrast=rng.uniform(0.2, 0.45), unmatched=0.08
    )
    for k in [0] + (1 + np.argsort(center[1, 1:])).tolist():
        draw(clumps[k], leaves._replace(color=scaled(leaves.color, light[k])))


def add_skyline(scene, street):
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


# ---------------------------------------------------------------------------
# Street furniture


def add_pole(scene, pose, kind):
    """A lamp post, or a pole with signs or a traffic light."""
    rng = scene.rng
    frame = scene.billboard(pose)
    scene.begin(pose, 0.15, 0.15, 3)
    draw = scene.brush(frame, scene.identity("pole"))
    metal = scene.paint(MINERAL)
    side = -1 if pose.x > scene.view.position[0] else 1  # towards the road
    if kind == "lamp":
        height, width = rng.uniform(5, 9), rng.uniform(0.12, 0.24)
        reach = side * rng.uniform(0.8, 2.5)
        draw(rectangle(-width / 2, 0, width / 2, height), metal)
        draw(bar((0, height), (reach, height + 0.4), 0.12), metal)
        head = rectangle(reach - 0.35, height + 0.3, reach + 0.35, height + 0.5)
        draw(head, WHITE._replace(glow=1.0))
        return
    height = rng.uniform(2.6, 3.6)
    draw(rectangle(-0.06, 0, 0.06, height), metal)
    if kind == "light":
        if rng.random() < 0.5:  # a second one over the road
            reach, top = side * rng.uniform(2, 4.5), rng.uniform(5, 6)
            draw(rectangle(-0.08, 0, 0.08, top), metal)
            draw(bar((0, top), (reach, top), 0.12), metal)
            add_traffic_light(scene, frame, reach, top + 0.3)
        add_traffic_light(scene, frame, 0.0, height)
        return
    for k in range(rng.integers(1, 3)):
        add_sign(scene, frame, height - 0.85 * k)


def add_traffic_light(scene, frame, s, top):
    draw = scene.brush(frame, scene.identity("traffic light"))
    draw(rectangle(s - 0.22, top - 1.0, s + 0.22, top), BLACK)
    lit = scene.rng.integers(3)
    for k, color in enumerate(((0.8, 0.05, 0.03), (0.8, 0.4, 0.02), (0.05, 0.7, 0.3))):
        lamp = Paint(color, 2.0) if k == lit else Paint(scaled(color, 0.15))
        draw(ellipse(s, top - 0.18 - 0.32 * k, 0.12), lamp)


def add_sign(scene, frame, t):
    """A disc, a disc with a bar, a triangle or a board."""
    rng = scene.rng
    draw = scene.brush(frame, scene.identity("traffic sign"))
    kind, r = rng.integers(4), rng.uniform(0.3, 0.45)
    wide = r + 0.3 * (r > 0.38)
    outer, inner = (
        (ellipse(0, t, r, corners=14), ellipse(0, t, 0.7 * r)),
        (ellipse(0, t, r, corners=8), rectangle(-0.6 * r, t - 0.07, 0.6 * r, t + 0.07)),
        (triangle(t, 1.1 * r), triangle(t, 0.7 * r)),
        (rectangle(-wide, t - r, wide, t + r), rectangle(-0.6 * r, t - 0.5, 0, t)),
    )[kind]
    rims = ((0.5, 0.04, 0.03), (0.05, 0.15, 0.5), (0.6, 0.5, 0.05))
    draw(outer, Paint(rims[rng.integers(3)]))
    draw(inner, scene.paint(PAINTED) if rng.random() < 0.4 else WHITE)


def add_clutter(scene, pose):
    """A bin, a box or a cabinet: void in the annotation."""
    rng = scene.rng
    width, depth, height = rng.uniform((0.25, 0.25, 0.5), (0.6, 0.5, 1.5)).tolist()
    scene.begin(pose, width, depth, height)
    identity = scene.identity(rng.choice(["static", "static", "unlabeled", "dynamic"]))
    paint = scene.paint(PAINTED, contrast=0.2)
    profile = [(-depth, 0.02, paint), (-depth, height, paint), (depth, height, paint)]
    extrude(scene, pose, identity, profile + [(depth, 0.02, None)], width, paint)
    draw = scene.brush(pose.across(-depth), identity)
    draw(rectangle(-width, 0.75 * height, width, 0.9 * height), scene.paint(PAINTED))


# ---------------------------------------------------------------------------
# Vehicles


def extrude(scene, pose, identity, profile, half_width, paint):
    """Draws what the camera sees of a side profile swept across its width.

    Args:
        profile: `(forward, up, paint)` corners from the rear bottom over the top to
            the front bottom; each paint is that of the strip to the next corner.
        half_width: float, metres.
        paint: Paint of the side.

    Returns:
        `(side, end)`: offset to the right of the visible side, or 0; and -1, 1 or 0
        when the rear, the front or neither faces the camera.
    """
    right, forward = pose.local(scene.view.position[0], 0.0)
    up = scene.view.position[1] - pose.y
    end = -1 if forward < profile[0][0] else int(forward > profile[-1][0])
    strips = list(zip(profile[:-1], profile[1:]))
    for (f0, u0, strip_paint), (f1, u1, _) in strips if end > 0 else strips[::-1]:
        df, du = f1 - f0, u1 - u0
        if (f0 - forward) * du + (up - u0) * df <= 0:
            continue
        length = math.hypot(df, du)
        along = (0, du / length, df / length)
        frame = pose.frame((-half_width, u0, f0), (1, 0, 0), along)
        draw = scene.brush(frame, identity)
        outline = rectangle(0, 0, 2 * half_width, length)
        if strip_paint.unmatched > 0.4:  # glass has pillars beside it
            draw(outline, paint)
            outline = rectangle(0.12, 0.05, 2 * half_width - 0.12, length - 0.05)
        draw(outline, strip_paint)
    side = math.copysign(half_width, right) if abs(right) > half_width else 0
    if side:
        scene.add(pose.side(side), [(f, u) for f, u, _ in profile], identity, paint)
    return side, end


def add_wheels(draw, axles, radius, hub):
    for f in axles:
        draw(ellipse(f, radius, radius, corners=14), BLACK)
        draw(ellipse(f, radius, 0.58 * radius), hub)


def add_end(draw, end, half_width, low, lamp, glow):
    """Lamps, number plate, bumper and tyres of the rear (-1) or the front (1)."""
    for s in (0.2 - half_width, half_width - 0.2):
        draw(rectangle(s - 0.12, 0, s + 0.12, low + 0.05), BLACK)
    draw(rectangle(-half_width, low, half_width, low + 0.18), Paint((0.06, 0.06, 0.06)))
    if end > 0:
        draw(rectangle(-0.5 * half_width, low + 0.2, 0.5 * half_width, lamp), BLACK)
    light = Paint((0.75, 0.72, 0.65) if end > 0 else (0.55, 0.03, 0.02), glow)
    for s in (0.2 - half_width, half_width - 0.2):
        draw(ellipse(s, lamp, 0.17, 0.1, corners=8), light)
    draw(rectangle(-0.26, low + 0.22, 0.26, low + 0.34), WHITE)


def glass_paint(scene):
    shade = scene.rng.uniform(0.02, 0.2)
    color = (shade, 1.05 * shade, 1.1 * shade)
    return Paint(color, tile=6, contrast=0.3, unmatched=0.55)


def add_car(scene, pose, lamps=0.0):
    """A hatchback, a saloon, an estate or a van."""
    rng = scene.rng
    length, width, height = rng.uniform((3.7, 0.82, 1.38), (4.9, 0.95, 1.6)).tolist()
    deck, back, bonnet, tall = (
        (0.05, 0.55, 0.9, 1), (0.75, 0.65, 1.1, 1), (0.05, 0.2, 1, 1),
        (0.05, 0.2, 0.55, 1.3),
    )[rng.choice(4, p=[0.35, 0.3, 0.2, 0.15])]  # fmt: skip
    height *= tall
    rear, front = -length / 2, length / 2
    low, belt = 0.24, 0.58 * height
    scene.begin(pose, width, front, height)
    identity = scene.identity("car")
    body = scene.paint(PAINTED, tile=6, contrast=0.1, unmatched=0.05)
    glass = glass_paint(scene)
    roof_rear, roof_front = rear + deck + back, front - bonnet - 0.75
    profile = [
        (rear, low, body), (rear, belt, body), (rear + deck, belt + 0.04, glass),
        (roof_rear, height - 0.04, body), (roof_front, height, glass),
        (front - bonnet, belt + 0.05, body), (front - 0.05, belt - 0.18, body),
        (front, low, None),
    ]  # fmt: skip
    side, end = extrude(scene, pose, identity, profile, width, body)
    if end:
        draw = scene.brush(pose.across(end * front), identity)
        add_end(draw, end, width, low, belt - 0.22, lamps)
    if not side:
        return
    draw = scene.brush(pose.side(side), identity)
    top = height - 0.1
    pane = [(rear + deck + 0.15, belt + 0.06), (roof_rear + 0.05, top)]
    pane += [(roof_front - 0.03, top), (front - bonnet - 0.2, belt + 0.08)]
    draw(pane, glass)
    for f in (roof_front - 1.0, roof_rear + 0.45):
        draw(rectangle(f - 0.05, belt, f + 0.05, top), body)
    dark = body._replace(color=scaled(body.color, 0.45))
    for f in (roof_front - 1.0, roof_front + 0.3):
        draw(rectangle(f - 0.015, low + 0.1, f + 0.015, belt), dark)
    draw(rectangle(rear, low, front, low + 0.1), dark)
    hub = Paint(scaled((1, 1, 1), rng.uniform(0.1, 0.5)))
    add_wheels(draw, (rear + 0.78, front - 0.82), rng.uniform(0.29, 0.36), hub)


def add_large_vehicle(scene, pose, name, lamps=0.0):
    """A truck, a bus or a tram (`train`)."""
    rng = scene.rng
    low, high = {
        "truck": ((6, 1.05, 2.6), (10, 1.27, 3.7)),
        "bus": ((9, 1.2, 2.8), (12, 1.27, 3.3)),
        "train": ((14, 1.15, 3.2), (22, 1.25, 3.6)),
    }[name]
    length, width, height = rng.uniform(low, high).tolist()
    rear, front = -length / 2, length / 2
    scene.begin(pose, width, front, height)
    identity = scene.identity(name)
    add_body = add_truck_body if name == "truck" else add_bus_body
    side, end = add_body(scene, pose, identity, front, width, height)
    if side and name != "train":
        hub = Paint(scaled((1, 1, 1), rng.uniform(0.05, 0.35)))
        axles = (rear + 0.22 * length, front - 0.2 * length)
        add_wheels(scene.brush(pose.side(side), identity), axles, 0.48, hub)
    if end:
        draw = scene.brush(pose.across(end * front), identity)
        add_end(draw, end, width, 0.4, 0.85, lamps)


def add_bus_body(scene, pose, identity, front, width, height):
    """One box with a stripe, bands of windows, doors and a lit board."""
    rng = scene.rng
    body = scene.paint(PAINTED, tile=8, contrast=0.1, unmatched=0.05)
    glass = glass_paint(scene)
    profile = [(-front, 0.3, body), (0.1 - front, height, body)]
    profile += [(front - 0.2, height, body), (front, 0.3, None)]
    side, end = extrude(scene, pose, identity, profile, width, body)
    if end:
        draw = scene.brush(pose.across(end * (front - 0.1)), identity)
        draw(rectangle(0.15 - width, 1.2, width - 0.15, height - 0.55), glass)
        board = Paint((0.5, 0.35, 0.05), 0.8, PLAIN, 0.5, 0.8)
        draw(rectangle(-0.6 * width, height - 0.42, 0.6 * width, height - 0.12), board)
    if side:
        draw = scene.brush(pose.side(side), identity)
        stripe = rectangle(0.05 - front, 0.3, front - 0.03, rng.uniform(0.5, 1))
        draw(stripe, scene.paint(PAINTED))
        pitch = rng.uniform(1.2, 1.8)
        for f in np.arange(0.3 - front, front - pitch, pitch).tolist():
            draw(rectangle(f, 1.25, f + 0.9 * pitch, height - 0.5), glass)
        for f in (front - 1.6, -0.1 * front):
            draw(rectangle(f, 0.35, f + 1.2, height - 0.5), glass)
    return side, end


def add_truck_body(scene, pose, identity, front, width, height):
    """Cab and load, the farther one first."""
    rng = scene.rng
    body = scene.paint(PAINTED, tile=8, contrast=0.1, unmatched=0.05)
    load = scene.paint(PAINTED, texture=PLANKS, tile=4)
    glass = glass_paint(scene)
    split, top = front - rng.uniform(1.7, 2.2), rng.uniform(2.2, 2.7)
    cargo = [(-front, 0.75, load), (-front, height, load)]
    cargo += [(split - 0.2, height, load), (split - 0.2, 0.75, None)]
    cab = [(split, 0.45, body), (split, top, body), (front - 0.3, top, glass)]
    cab += [(front - 0.05, 1.3, body), (front, 0.35, None)]
    parts = [(cab, 0.97 * width, body), (cargo, width, load)]
    behind = pose.local(scene.view.position[0], 0.0)[1] < split
    for profile, half_width, paint in parts if behind else parts[::-1]:
        side, end = extrude(scene, pose, identity, profile, half_width, paint)
        if not side:
            continue
        draw = scene.brush(pose.side(side), identity)
        if profile is cab:
            draw(
                [(split + 0.4, 1.4), (split + 0.4, top - 0.2)]
                + [(front - 0.4, top - 0.2), (front - 0.2, 1.4)],
                glass,
            )
        else:
            draw(rectangle(0.1 - front, 0.5, split, 0.78), BLACK)
    return side, end


def add_two_wheeler(scene, pose, motor, ridden):
    """A bicycle or motorcycle, parked or ridden, seen from its side or its end."""
    rng = scene.rng
    scene.begin(pose, 0.3, 0.8, 1.2)
    identity = scene.identity("motorcycle" if motor else "bicycle")
    rider = scene.identity("rider") if ridden else None
    right, forward = pose.local(scene.view.position[0], 0.0)
    if abs(right) > 0.35 * math.hypot(right, forward):
        frame = pose.side(0)
        draw_side = draw_motorcycle if motor else draw_bicycle
        draw_side(scene, scene.brush(frame, identity))
        if ridden:
            draw_rider(scene, scene.brush(frame, rider), motor)
        return
    frame = scene.billboard(pose)
    draw = scene.brush(frame, identity)
    width, radius = (0.09, 0.32) if motor else (0.04, 0.35)
    draw(ellipse(0, radius, width, radius), BLACK)
    hull = ellipse(0, 0.72, 0.24, 0.28) if motor else ellipse(0, 0.72, 0.1, 0.15)
    draw(hull, scene.paint(PAINTED))
    if motor:
        lamp = WHITE if forward > 0 else Paint((0.55, 0.03, 0.02), 0.5)
        draw(ellipse(0, 0.78, 0.09), lamp)
    draw(bar((-0.36, 1.03), (0.36, 1.03), 0.07), BLACK)
    if ridden:
        draw_person(
            scene, scene.brush(frame, rider), rng.uniform(1.65, 1.85), seat=0.22
        )


def draw_bicycle(scene, draw):
    """Side view around `s = 0`, heading to `s > 0`, as all side views do."""
    paint = scene.paint(PAINTED)
    rear, front, radius = (-0.54, 0.35), (0.54, 0.35), 0.35
    seat, crank, fork, handle = (-0.2, 0.9), (-0.05, 0.35), (0.35, 0.8), (0.38, 1.0)
    for hub in (rear, front):
        draw(ring(*hub, radius, 0.085), BLACK)
        draw(ellipse(*hub, 0.1), paint)
    tubes = [(seat, crank), (crank, fork), (seat, fork), (rear, crank), (rear, seat)]
    for start, end in tubes + [(handle, front)]:
        draw(bar(start, end, 0.065), paint)
    draw(bar((-0.33, 0.93), (-0.08, 0.95), 0.09), BLACK)
    draw(bar((0.28, 1.04), (0.46, 1.0), 0.06), BLACK)
    if scene.rng.random() < 0.4:  # a pannier
        draw(rectangle(-0.75, 0.45, -0.4, 0.75), scene.paint(PAINTED))


def draw_motorcycle(scene, draw):
    paint = scene.paint(PAINTED)
    for s in (-0.7, 0.7):
        draw(ring(s, 0.31, 0.31, 0.13), BLACK)
        draw(ellipse(s, 0.31, 0.1), paint)
    body = [(-0.8, 0.72), (-0.5, 0.42), (0.3, 0.28), (0.45, 0.5), (0.42, 0.95)]
    draw(body + [(0.15, 0.98), (0, 0.8), (-0.75, 0.85)], paint)
    engine = [(-0.35, 0.25), (0.3, 0.22), (0.35, 0.55), (-0.3, 0.58)]
    draw(engine, Paint((0.1, 0.1, 0.1), contrast=0.5))
    draw(rectangle(-0.75, 0.8, 0.02, 0.9), BLACK)
    draw(bar((0.4, 1.1), (0.7, 0.31), 0.12), BLACK)
    draw(ellipse(0.52, 0.88, 0.12), WHITE)


# ---------------------------------------------------------------------------
# People


def draw_rider(scene, draw, motor):
    """Side view of the person on a two-wheeler."""
    cloth, trousers = scene.paint(PAINTED), scene.paint(PAINTED)
    hip, knee, foot, hand = (-0.22, 0.95), (0.2, 0.72), (0.02, 0.3), (0.4, 1.05)
    x, y = shoulder = (0.08, 1.45) if motor else (0.02, 1.5)
    draw(bar(hip, knee, 0.17), trousers)
    draw(bar(knee, foot, 0.13), trousers)
    draw(rectangle(-0.03, 0.22, 0.2, 0.32), BLACK)
    torso = [(hip[0] - 0.13, hip[1] - 0.05), (hip[0] + 0.16, hip[1])]
    draw(torso + [(x + 0.16, y - 0.1), shoulder, (x - 0.16, y - 0.02)], cloth)
    draw(bar(shoulder, hand, 0.11), cloth)
    draw(ellipse(x + 0.08, y + 0.19, 0.12, 0.15), scene.paint(SKIN))
    if motor or scene.rng.random() < 0.6:  # a helmet
        draw(ellipse(x + 0.07, y + 0.27, 0.15, 0.1), scene.paint(PAINTED))


def draw_person(scene, draw, height=1.75, seat=None):
    """A person from the front or behind; `seat` raises the feet of a rider."""
    rng = scene.rng
    k, foot = height / 1.75, seat or 0.0
    cloth = scene.paint(PAINTED, contrast=0.3)
    trousers = scene.paint(PAINTED, contrast=0.3)
    skin, hair = scene.paint(SKIN), Paint(scaled(scene.color(SKIN), 0.4))
    stride = 0.16 if seat else rng.uniform(0.02, 0.3)
    width, swing = k * rng.uniform(0.19, 0.25), k * rng.uniform(0.02, 0.18)
    for side, light in zip(SIDES, (0.75, 1.0)):
        leg = trousers._replace(color=scaled(trousers.color, light))
        ankle = (side * stride * k, (foot + 0.06) * k)
        draw(bar((side * 0.08 * k, 0.88 * k), ankle, 0.17 * k), leg)
        draw(rectangle(ankle[0] - 0.07, foot, ankle[0] + 0.12, foot + 0.1), BLACK)
    for side, light in zip(SIDES, (0.8, 0.95)):
        sleeve = cloth._replace(color=scaled(cloth.color, light))
        hand = (side * (width + swing), 1.05 if seat else 0.85 * k)
        draw(bar((side * width * 0.9, 1.42 * k), hand, 0.12 * k), sleeve)
        draw(ellipse(*hand, 0.055), skin)
    hem = rng.choice([0.55, 0.8, 0.85]) * k
    right = [(0.8 * width, hem), (width, 1.42 * k), (0.4 * width, 1.5 * k)]
    draw(right + [(-s, t) for s, t in right[::-1]], cloth)
    if rng.random() < 0.3 and not seat:
        bag = rectangle(0.5 * width, 0.75 * k, width + 0.16, 1.05 * k)
        draw(bag, scene.paint(PAINTED))
    draw(ellipse(0, 1.62 * k, 0.115 * k, 0.145 * k), skin)
    draw(ellipse(0, 1.68 * k, 0.12 * k, 0.1 * k), hair)


def add_pedestrian(scene, pose):
    scene.begin(pose, 0.25, 0.2, 1.7)
    child = scene.rng.random() < 0.12
    height = scene.rng.uniform(1.0, 1.4) if child else scene.rng.uniform(1.58, 1.92)
    draw = scene.brush(scene.billboard(pose), scene.identity("person"))
    draw_person(scene, draw, height)


# ---------------------------------------------------------------------------
# Population of a scene


def add_vehicle(scene, pose, kind, lamps=0.0):
    if kind == "car":
        add_car(scene, pose, lamps)
    elif kind in ("truck", "bus", "train"):
        add_large_vehicle(scene, pose, kind, lamps)
    else:
        add_two_wheeler(scene, pose, kind == "motorcycle", True)


def add_traffic(scene, street, lamps):
    """Vehicles in every lane, and one that comes out of each side street."""
    rng = scene.rng
    spacing = 14 / rng.uniform(0.15, 1.0)
    kinds = ["car", "truck", "bus", "motorcycle", "bicycle", "train"]
    for index in range(-street.lanes, street.lanes):
        offset = (index + 0.5) * street.lane
        turn = math.pi if index < 0 else 0.0
        own = abs(offset - scene.view.position[0]) < 1.5
        z = rng.uniform(7 if own else 4, 30)
        while z < 90:
            kind = rng.choice(kinds, p=[0.765, 0.065, 0.05, 0.04, 0.06, 0.02])
            half = {"car": 2.5, "truck": 5, "bus": 6, "train": 11}.get(kind, 1)
            x = offset + rng.normal(0, 0.2) + (half == 1) * math.copysign(0.8, offset)
            pose = street.pose(x, z + half, turn + rng.normal(0, 0.02))
            add_vehicle(scene, pose, kind, lamps)
            z += 2 * half + 2 + rng.exponential(spacing)
    for index, side in enumerate(SIDES):
        if street.junctions[index] and rng.random() < 0.6:
            z = sum(street.junctions[index]) / 2 + rng.uniform(-1.5, 1.5)
            offset = side * (street.kerb[index] + rng.uniform(-2, 8))
            pose = street.pose(offset, z, rng.choice(SIDES) * math.pi / 2)
            kind = rng.choice(kinds, p=[0.5, 0.1, 0.1, 0.15, 0.15, 0])
            add_vehicle(scene, pose, kind, lamps)


def add_parked(scene, street, index):
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


def add_pavement_life(scene, street, index):
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


def add_crossing_people(scene, street):
    rng = scene.rng
    for _ in range(rng.poisson(0.7)):
        turn = rng.choice(SIDES) * math.pi / 2
        offset = rng.uniform(-street.kerb[0], street.kerb[1])
        pose = street.pose(offset, rng.uniform(5, 35), turn)
        if rng.random() < 0.8:
            add_pedestrian(scene, pose)
        else:
            add_two_wheeler(scene, pose, rng.random() < 0.4, True)


def add_borders(scene):
    """The own bonnet and the frame that rectification leaves, in screen
    coordinates 0..1."""
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
        outline = edge.tolist() + [(1, 1.1), (0, 1.1)]
        scene.screen.append((outline, ego, paint))
        outline = (edge + (0, 0.015)).tolist() + [(0.7, 1.1), (0.3, 1.1)]
        scene.screen.append((outline, ego, gleam))
    left, right, top, bottom = rng.uniform(0.002, 0.012, 4).tolist()
    if rng.random() < 0.8:
        for outline in (
            [(0, 0), (left, 0), (0.4 * left, 1), (0, 1)],
            [(1 - 0.5 * right, 0), (1, 0), (1, 1), (1 - right, 1)],
        ):
            scene.screen.append((outline, border, BLACK))
    for outline in (rectangle(0, 0, 1, top), rectangle(0, 1 - bottom, 1, 1.01)):
        scene.screen.append((outline, outside, Paint((0.1, 0.1, 0.1))))


# ---------------------------------------------------------------------------
# Camera and light


def sample_view(rng, x):
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


def sample_weather(rng):
    chances, zeniths, horizons, ambients, sunlights, heights, covers, lamps = zip(
        *WEATHERS
    )
    kind = rng.choice(len(WEATHERS), p=chances)
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(*heights[kind])
    horizon = np.array(horizons[kind]) * rng.uniform(0.45, 1.5)
    flat = math.cos(height)
    return Weather(
        zenith=np.array(zeniths[kind]) * rng.uniform(0.45, 1.5),
        horizon=horizon,
        clouds=horizon * rng.uniform(0.6, 1.4),
        ambient=np.array(ambients[kind]),
        sunlight=np.array(sunlights[kind]),
        sun=np.array(
            [flat * math.sin(azimuth), math.sin(height), flat * math.cos(azimuth)]
        ),
        cover=rng.uniform(*covers[kind]),
        haze=0.0005 * 20 ** rng.random(),
        lamps=lamps[kind],
    )


# ---------------------------------------------------------------------------
# Rasterisation


def paint_order(boxes):
    """Far-to-near order of objects on disjoint rectangles.

    Of two rectangles, the one beyond a line across or along the street, with the
    other and the camera on the near side, cannot hide the other.

    Args:
        boxes: `(n, 4)` of `x0, x1, z0, z1` relative to the camera.

    Returns:
        List of the n numbers, each after everything it may hide.
    """
    boxes = boxes[:, None] + (1e-3, -1e-3, 1e-3, -1e-3)  # neighbours may touch
    x0, x1, z0, z1 = np.moveaxis(boxes, -1, 0)
    behind = z0 >= z1.T
    behind |= (x0 >= x1.T) & (x0 >= 0)
    behind |= (x1 <= x0.T) & (x1 <= 0)
    distance = np.hypot((x0 + x1) / 2, (z0 + z1) / 2)[:, 0]
    farther = distance[:, None] > distance
    before = np.where(behind == behind.T, farther & ~behind, behind)
    waiting = before.sum(axis=0)
    far_first = np.argsort(-distance, kind="stable")
    order = []
    for _ in far_first:
        k = far_first[np.argmin(waiting[far_first])]
        order.append(int(k))
        waiting -= before[k]
        waiting[k] = len(boxes) + 1
    return order


def clip_near(points):
    """Part of a polygon with a depth of at least `NEAR`.

    Args:
        points: `(n, 3)` homogeneous image points whose last entry is the depth.
    """
    following = np.roll(points, -1, axis=0)
    inside, follows = points[:, 2] >= NEAR, following[:, 2] >= NEAR
    step = np.where(inside == follows, 1, following[:, 2] - points[:, 2])
    crossing = points + ((NEAR - points[:, 2]) / step)[:, None] * (following - points)
    kept = np.stack([points, crossing], 1).reshape(-1, 3)
    return kept[np.stack([inside, inside != follows], 1).ravel()]


class Planes(NamedTuple):
    """Per surface: inverse image matrices `(n, 9)`, least and greatest inverse
    depth `(n,)`, unit normals towards the camera `(n, 3)`."""

    inverse: np.ndarray
    low: np.ndarray
    high: np.ndarray
    normals: np.ndarray


def rasterise(scene, view, size):
    """Paints all surfaces far to near.

    Args:
        view: View with intrinsics in pixels of `size`.

    Returns:
        Surface number of each pixel, `(H, W)` int32, and the `Planes`.
    """
    frames = np.array(scene.frames).reshape(-1, 3, 3)
    frames[:, 2] -= view.position
    count = len(frames)
    normals = np.cross(frames[:, 0], frames[:, 1])
    toward = -np.einsum("ni,ni->n", normals, frames[:, 2])
    normals *= np.sign(toward)[:, None]
    matrices = view.intrinsics @ view.rotation @ frames.transpose(0, 2, 1)
    screen = [outline for outline, _, _ in scene.screen]
    height, width = size
    matrices = np.concatenate(
        [matrices, np.tile(np.diag([width, height, 1.0]), (len(screen), 1, 1))]
    )
    normals = np.concatenate([normals, np.tile(UP, (len(screen), 1))])
    edge_on = np.zeros(len(matrices), bool)
    edge_on[:count] = np.abs(toward) < 1e-3
    matrices[edge_on] = np.eye(3)

    outlines = scene.outlines + screen
    lengths = np.array([len(outline) for outline in outlines])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    corners = np.ones((ends[-1], 3))
    corners[:, :2] = [corner for outline in outlines for corner in outline]
    owner = np.repeat(np.arange(len(outlines)), lengths)
    points = np.einsum("nij,nj->ni", matrices[owner], corners)
    depth = np.maximum(points[:, 2], NEAR)
    pixels = points[:, :2] / depth[:, None]
    low, high = (f.reduceat(1 / depth, starts) for f in (np.minimum, np.maximum))
    low[scene.level], high[scene.level] = 1e-3, 1 / NEAR
    nearest = np.minimum.reduceat(points[:, 2], starts)
    least = np.minimum.reduceat(pixels, starts)
    most = np.maximum.reduceat(pixels, starts)
    crosses = nearest < NEAR
    visible = ~edge_on & (np.maximum.reduceat(points[:, 2], starts) > NEAR)
    outside = (most < -1).any(1) | (least > (width, height)).any(1)
    visible &= crosses | ~outside

    surface = np.full(size, -1, np.int32)
    fixed = np.round(pixels * 16).astype(np.int32)  # 4 fractional bits
    for k in drawing_order(scene, count, len(outlines)):
        if not visible[k]:
            continue
        outline = fixed[starts[k] : ends[k]]
        if crosses[k]:
            clipped = clip_near(points[starts[k] : ends[k]])
            outline = np.round(16 * clipped[:, :2] / clipped[:, 2:]).astype(np.int32)
        cv2.fillPoly(surface, [outline], int(k), shift=4)
    inverse = np.linalg.inv(matrices).reshape(-1, 9)
    return surface, Planes(inverse, low, high, normals)


def drawing_order(scene, count, total):
    """Numbers of all surfaces: ground, objects far to near, then the screen."""
    boxes = np.array(scene.boxes) - scene.view.position[[0, 0, 2, 2]]
    starts, level = scene.starts, set(scene.level)
    yield from range(starts[0])
    yield from (k for k in scene.level if k >= starts[0])
    ranges = list(zip(starts, starts[1:] + [count]))
    for index in paint_order(boxes):
        yield from (k for k in range(*ranges[index]) if k not in level)
    yield from range(count, total)


# ---------------------------------------------------------------------------
# Shading


def waves(rng, octaves, decay=0.6):
    """Tileable smooth noise, `(TILE, TILE)`, zero mean and unit deviation."""
    total = np.zeros((TILE, TILE), np.float32)
    for k in octaves:
        coarse = rng.normal(size=(2**k, 2**k)).astype(np.float32)
        padded = np.pad(coarse, 2, mode="wrap")
        scale = TILE >> k
        size = (2**k + 4) * scale
        fine = cv2.resize(padded, (size, size), interpolation=cv2.INTER_CUBIC)
        total += decay**k * fine[2 * scale :, 2 * scale :][:TILE, :TILE]
    return (total - total.mean()) / total.std()


@functools.cache
def texture_atlas(levels=6):
    """Textures at halving sharpness, `(textures, levels, TILE, TILE)` float32 with
    zero mean and unit deviation at the sharpest level."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:TILE, :TILE]
    layers = {
        PLAIN: waves(rng, range(1, 7)),
        GRAIN: 0.5 * waves(rng, range(1, 5)) + waves(rng, [7]),
        LEAF: waves(rng, range(3, 8), decay=0.95),
    }
    shifted = (column + 8 * (row // 8 % 2)) % TILE
    joints = (row % 8 < 2) | (shifted % 16 < 2)
    tone = rng.normal(size=(16, 8)).repeat(8, 0).repeat(16, 1)
    tone = np.where(row // 8 % 2 == 0, tone, np.roll(tone, -8, 1))
    layers[BRICK] = np.where(joints, -1.8, 0.5 + 0.6 * tone)
    joints = (row % 32 < 2) | (column % 32 < 2)
    tone = rng.normal(size=(4, 4)).repeat(32, 0).repeat(32, 1)
    layers[SLABS] = np.where(joints, -3.0, 0.6 * tone) + 0.4 * waves(rng, [7])
    tone = rng.normal(size=(1, 16)).repeat(TILE, 0).repeat(8, 1)
    layers[PLANKS] = np.where(column % 8 < 3, -1.2, 0.8 + 0.4 * tone)
    atlas = np.empty((len(layers), levels, TILE, TILE), np.float32)
    for texture, layer in layers.items():
        layer = ((layer - layer.mean()) / layer.std()).astype(np.float32)
        padded = np.pad(layer, TILE // 2, mode="wrap")
        for level in range(levels):
            blurred = cv2.GaussianBlur(padded, (0, 0), 0.5 * 2**level)
            blurred = blurred if level else padded
            half = TILE // 2
            atlas[texture, level] = blurred[half : half + TILE, half : half + TILE]
    return atlas


def texture_values(texture, level, s, t):
    """Nearest texels of a texture number, a sharpness level and texel coordinates."""
    atlas = texture_atlas()
    column = s.astype(np.int32) & (TILE - 1)
    row = t.astype(np.int32) & (TILE - 1)
    index = ((texture * atlas.shape[1] + level) * TILE + row) * TILE + column
    return np.take(atlas.ravel(), index)


class Pixels(NamedTuple):
    """Geometry of each pixel, all `(H, W)`: surface number, texture coordinates in
    metres, inverse depth in 1/m (0 for sky), metres per pixel on the surface."""

    surface: np.ndarray
    s: np.ndarray
    t: np.ndarray
    inverse_depth: np.ndarray
    footprint: np.ndarray


def locate_pixels(surface, planes):
    height, width = surface.shape
    table = planes.inverse.astype(np.float32)
    row = np.arange(height, dtype=np.float32)[:, None]
    column = np.arange(width, dtype=np.float32)
    found = np.maximum(surface, 0)
    s, t, inverse = (
        np.take(table[:, k], found) * column
        + np.take(table[:, k + 1], found) * row
        + np.take(table[:, k + 2], found)
        for k in (0, 3, 6)
    )
    low, high = planes.low.astype(np.float32), planes.high.astype(np.float32)
    # A drawn outline covers pixels up to half a pixel outside of the polygon.
    inverse = np.clip(inverse, np.take(low, found), np.take(high, found))
    spread = np.abs(np.linalg.det(planes.inverse.reshape(-1, 3, 3)))
    footprint = np.sqrt(np.take(spread.astype(np.float32), found) / inverse**3)
    depth = 1 / inverse
    inverse = np.where(surface < 0, np.float32(0), inverse)
    return Pixels(surface, s * depth, t * depth, inverse, footprint)


def surface_light(normals, weather):
    """Light on each surface, `(n, 3)`."""
    lit = np.maximum(normals @ weather.sun, 0)[:, None]
    ambient = 0.75 + 0.25 * normals[:, 1:2]
    return ambient * weather.ambient + lit * weather.sunlight


def add_windows(scene, pixels, color, gain, weather):
    """Draws the windows of facades, in place on `color` and its factor `gain`."""
    layout = np.zeros((len(scene.frames) + len(scene.screen) + 1, 6), np.float32)
    for k, windows in scene.windows.items():
        layout[k] = windows
    where = np.flatnonzero(np.take(layout[:, 0] > 0, pixels.surface, mode="wrap"))
    pitch, storey, wide, tall, bottom, key = layout[pixels.surface.flat[where]].T
    s, t = pixels.s.flat[where] / pitch, (pixels.t.flat[where] - bottom) / storey
    number = (7 * np.floor(s) + 31 * np.floor(t) + np.floor(key)).astype(np.int32)
    draw = np.take(np.random.default_rng(0).random(997, np.float32), number % 997)
    across, above = np.abs(s % 1 - 0.5), np.abs(t % 1 - 0.5)
    framed = (t > 0) & (across < wide / 2 + 0.04) & (above < tall / 2 + 0.04)
    glass = framed & (across < wide / 2) & (above < tall / 2) & (across > 0.025)
    gain.flat[where[framed]] *= np.where(key % 2 < 1, 1.5, 0.6)[framed]
    where, draw = where[glass], draw[glass, None]
    lamp = np.array([0.45, 0.3, 0.15]) * weather.lamps * (draw * 13 % 1 < 0.25)
    color.reshape(-1, 3)[where] = 0.03 + 0.7 * draw**3 * weather.horizon + lamp
    gain.flat[where] = 1


def shade_sky(view, surface, color, weather, rng):
    """Paints gradient and clouds, in place on `color`."""
    where = np.flatnonzero(surface < 0)
    row, column = np.divmod(where, surface.shape[1])
    rays = np.stack([column, row, np.ones_like(row)]).astype(np.float32)
    inverse = np.linalg.inv(view.intrinsics @ view.rotation).astype(np.float32)
    x, y, z = inverse @ rays
    up = np.maximum(y / np.hypot(x, z), 0.01)
    blend = np.minimum(up / 0.35, 1)[:, None] ** 0.7
    base = weather.horizon + (weather.zenith - weather.horizon) * blend
    s, t = (300 + 14 * axis / (up + 0.12) for axis in (x / z, np.ones_like(x)))
    s, t = s + rng.uniform(0, TILE), t * 3 + rng.uniform(0, TILE)
    density = texture_values(PLAIN, 1, s, t) * 0.6 + 2.2 * weather.cover - 0.9
    density = np.clip(density, 0, 1)[:, None]
    color.reshape(-1, 3)[where] = base + (weather.clouds - base) * density


def shadow_map(scene, view, size, weather):
    """How much light the ground lacks at each pixel, `(H, W)` float32."""
    shadow = np.zeros(size, np.uint8)
    corners = np.array([corners for corners, _ in scene.shadows])  # (n, 4, 2)
    heights = np.array([height for _, height in scene.shadows])
    shift = -weather.sun[[0, 2]] / weather.sun[1]
    cast = corners + heights[:, None, None] * shift
    points = np.insert(np.concatenate([corners, cast], 1), 1, 0.0, axis=2)
    points = (points - view.position) @ (view.intrinsics @ view.rotation).T
    bright = weather.sunlight.max() / (weather.sunlight + weather.ambient).max()
    casts = (points, int(200 * bright))
    contacts = (points[:, :4], 190)
    for outlines, darkness in (casts, contacts) if bright > 0.3 else (contacts,):
        nearest, farthest = outlines[..., 2].min(1), outlines[..., 2].max(1)
        for k in np.flatnonzero((farthest > NEAR) & (nearest < 60)):
            outline = outlines[k]
            if nearest[k] < NEAR:
                outline = clip_near(outline)
            outline = np.round(16 * outline[:, :2] / outline[:, 2:]).astype(np.int32)
            cv2.fillConvexPoly(shadow, cv2.convexHull(outline), darkness, shift=4)
    return cv2.blur(shadow, (3, 3)).astype(np.float32) / 255


def shade(scene, view, pixels, planes, weather, rng):
    """Linear colour of each sample, `(H, W, 3)` float32."""
    paints = scene.paints + [paint for _, _, paint in scene.screen]
    albedo = np.array([paint.color for paint in paints])
    glow = np.array([paint.glow * weather.lamps for paint in paints])[:, None]
    lit = albedo * (surface_light(planes.normals, weather) + glow)
    found = np.maximum(pixels.surface, 0)
    color = np.take(lit.astype(np.float32), found, axis=0)
    columns = np.array([[p.contrast, TILE / p.tile, p.texture] for p in paints])
    contrast, texels, texture = (
        np.take(column.astype(np.float32), found) for column in columns.T
    )
    level = np.log2(np.maximum(texels * pixels.footprint, 1))
    level = np.minimum(level.astype(np.int32), texture_atlas().shape[1] - 1)
    s, t = pixels.s * texels, pixels.t * texels
    grain = texture_values(texture.astype(np.int32), level, s, t)
    gain = np.maximum(1 + contrast * grain, 0.05)
    add_windows(scene, pixels, color, gain, weather)
    level_ground = np.zeros(len(paints), np.float32)
    level_ground[scene.level] = 0.8
    shadow = shadow_map(scene, view, pixels.surface.shape, weather)
    gain *= 1 - shadow * np.take(level_ground, found)
    clear = np.exp(-weather.haze / np.maximum(pixels.inverse_depth, 1e-3))
    color *= (gain * clear)[..., None]
    color += (1 - clear)[..., None] * weather.horizon.astype(np.float32)
    shade_sky(view, pixels.surface, color, weather, rng)
    return color


def expose(color, rng):
    """Photograph of the linear samples: lens blur, exposure, tint, tone and noise.

    Args:
        color: `(SUPERSAMPLE * H, SUPERSAMPLE * W, 3)` linear.

    Returns:
        `(H, W, 3)` uint8 RGB; a pixel is centred on its first sample.
    """
    color = cv2.GaussianBlur(color, (5, 5), rng.uniform(0.75, 1.2))
    color = color[::SUPERSAMPLE, ::SUPERSAMPLE]
    height, width = color.shape[:2]
    gain = np.exp(rng.uniform(-0.7, 0.7)) * 0.5 / (color.mean() + 0.15)
    warmth, green = rng.normal(0, 0.12), rng.normal(0, 0.04)
    balance = gain * np.exp([warmth, green, -warmth])
    color = color * balance.astype(np.float32)
    grey = color.mean(axis=2, keepdims=True)
    color = grey + (color - grey) * np.float32(rng.uniform(0.5, 1.35))
    row = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    column = np.linspace(-1, 1, width, dtype=np.float32)
    color *= (1 - rng.uniform(0, 0.25) * (row**2 + column**2) / 2)[..., None]
    tone = np.maximum(color, 0) ** np.float32(1 / rng.uniform(1.7, 2.5))
    noise = rng.standard_normal(color.shape, np.float32)
    tone += noise * np.float32(rng.uniform(0.004, 0.03))
    lift = rng.uniform(0, 0.08)
    return np.clip(255 * (lift + (1 - lift) * tone), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------
# Disparity


def blotches(rng, size, cell):
    """Smooth uniform-ish noise 0..1, `(H, W)` float32, in blobs of `cell` pixels."""
    height, width = size
    coarse = rng.random((height // cell + 2, width // cell + 2), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def match_stereo(disparity, unmatched, rng):
    """Where a stereo matcher finds a match, `(H, W)` bool.

    It fails where the right camera does not see the point, because it lies outside
    of the image or behind something nearer, and in patches without texture.

    Args:
        disparity: `(H, W)` in pixels.
        unmatched: `(H, W)`, how often the material defeats the matcher.
    """
    column = np.arange(disparity.shape[1], dtype=np.float32) - disparity
    reach = np.minimum.accumulate(column[:, ::-1], axis=1)[:, ::-1]
    matched = column >= 0
    matched[:, :-1] &= reach[:, 1:] > column[:, :-1] + 0.25
    cell = max(disparity.shape[1] // 40, 2)
    matched &= blotches(rng, disparity.shape, cell) > 0.7 * unmatched + 0.06
    return matched & (rng.random(disparity.shape, np.float32) > 0.01)


# ---------------------------------------------------------------------------
# Scenes and trees of files


def compose(rng):
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


def scale_view(view, image_size, supersample=1):
    """The view at another image size. With `supersample`, every n-th sample lies on
    the centre of a pixel."""
    height, width = image_size
    full_height, full_width = cityscapes.IMAGE_SIZE
    x_scale, y_scale = width / full_width, height / full_height
    resize = np.array(
        [
            [x_scale, 0, 0.5 * x_scale - 0.5],
            [0, y_scale, 0.5 * y_scale - 0.5],
            [0, 0, 1],
        ]
    )
    finer = np.diag([supersample, supersample, 1.0])
    return view._replace(intrinsics=finer @ resize @ view.intrinsics)


def render_scene(seed, image_size=(128, 256)):
    """Renders one street scene.

    Args:
        seed: int or sequence of ints for `np.random.default_rng`. It fixes the
            scene; the image size only samples it.
        image_size: `(height, width)`, any.

    Returns:
        dict of arrays `(H, W)`: `image` `(H, W, 3)` uint8 RGB, `semantic` uint8
        label ids, `instance` uint16 as in Cityscapes' `instanceIds`, and
        `disparity` uint16, 0 where invalid, else `256 d + 1` rounded, with d in
        pixels of this image's width.
    """
    rng = np.random.default_rng(seed)
    scene, weather = compose(rng)
    height, width = image_size
    size = (SUPERSAMPLE * height, SUPERSAMPLE * width)
    view = scale_view(scene.view, image_size, SUPERSAMPLE)
    surface, planes = rasterise(scene, view, size)
    pixels = locate_pixels(surface, planes)
    color = shade(scene, view, pixels, planes, weather, rng)

    surface = surface[::SUPERSAMPLE, ::SUPERSAMPLE]
    inverse_depth = pixels.inverse_depth[::SUPERSAMPLE, ::SUPERSAMPLE]
    # The last entry is the sky, surface -1.
    screen = [identity for _, identity, _ in scene.screen]
    identities = np.array(scene.identities + screen + [(SKY_ID, SKY_ID)])
    unmatched = [paint.unmatched for paint in scene.paints] + [0.0] * (len(screen) + 1)
    unmatched = np.array(unmatched, np.float32)[surface]
    in_world = (surface >= 0) & (surface < len(scene.frames))
    focal = cityscapes.CAMERA.fx * width / cityscapes.IMAGE_SIZE[1]
    disparity = cityscapes.CAMERA.baseline * focal * inverse_depth * in_world
    matched = match_stereo(disparity, unmatched, rng) & in_world
    coded = np.round(256 * disparity) + 1
    return {
        "image": expose(color, rng),
        "semantic": identities[surface, 0].astype(np.uint8),
        "instance": identities[surface, 1].astype(np.uint16),
        "disparity": np.where(matched, coded, 0).astype(np.uint16),
    }


def scene_seed(seed, split, index):
    """Seed of one scene; no two of a split or of two splits share one."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return seed, SPLITS.index(split), index


def frame_id(index):
    """Cityscapes' kind of name, `{city}_{sequence}_{frame}`, of a scene of a split."""
    return f"streets_{index:06d}_000019"


def write_cityscapes_tree(
    root, split_sizes, image_size=(128, 256), seed=0, unlabeled=("test",), progress=True
):
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
            scene["image"] = scene["image"][..., ::-1]  # OpenCV writes BGR
            for kind in kinds:
                path = cityscapes.frame_path(root, split, frame_id(index), kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), scene[kind]):
                    raise OSError(f"cannot write {path}")
