"""Scenes made of painted flat surfaces in three dimensions, and what they consist of.

A surface is a polygon in the `(s, t)` coordinates, in metres, of a plane
`origin + s * a + t * b`. A plane is written as nine numbers: `a`, `b`, `origin`,
with `a` and `b` of unit length.

World axes: x to the right, y up, z along the view, in metres, with the camera above
`z = 0`. Colours are linear reflectances.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mtl_keras.cityscapes import FIRST_INSTANCE_ID, LABEL_IDS, LABELS

Vector: TypeAlias = tuple[float, float, float]
Color: TypeAlias = tuple[float, float, float]
Frame: TypeAlias = tuple[float, ...]  # the nine numbers of a plane
Outline: TypeAlias = list[tuple[float, float]]
Identity: TypeAlias = tuple[int, int]  # label id, id in the instance map

UP = (0.0, 1.0, 0.0)
SIDES = (-1, 1)  # left and right
PLAIN, GRAIN, BRICK, SLABS, LEAF, PLANKS = range(6)  # textures


class Paint(NamedTuple):
    """How a surface looks: linear reflectance, light of its own in units of that
    reflectance, texture, edge of a texture tile in metres, contrast, and how often
    a stereo matcher fails on it (0..1)."""

    color: Color
    glow: float = 0.0
    texture: int = PLAIN
    tile: float = 3.0
    contrast: float = 0.12
    unmatched: float = 0.0


Brush: TypeAlias = Callable[[Outline, Paint], None]

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


class Pose(NamedTuple):
    """Place of an object on the ground and its heading, clockwise from z."""

    x: float
    y: float
    z: float
    sin: float
    cos: float

    @classmethod
    def of(cls, x: float, y: float, z: float, heading: float) -> "Pose":
        """A pose at a point, with a heading in radians from the z axis to the right."""
        return cls(x, y, z, math.sin(heading), math.cos(heading))

    def turn(self, vector: Vector) -> Vector:
        """World axes of a `(right, up, forward)` vector."""
        right, up, forward = vector
        x = self.cos * right + self.sin * forward
        return x, up, self.cos * forward - self.sin * right

    def point(self, vector: Vector) -> Vector:
        """World coordinates of a vector in the axes of the pose."""
        x, y, z = self.turn(vector)
        return self.x + x, self.y + y, self.z + z

    def frame(self, origin: Vector, a: Vector, b: Vector) -> Frame:
        """Plane through a local point along two local unit vectors."""
        return self.turn(a) + self.turn(b) + self.point(origin)

    def side(self, right: float) -> Frame:
        """Upright plane along the heading; s is forward, t is up."""
        return self.frame((right, 0, 0), (0, 0, 1), UP)

    def across(self, forward: float) -> Frame:
        """Upright plane across the heading; s is right, t is up."""
        return self.frame((0, 0, forward), (1, 0, 0), UP)

    def local(self, x: float, z: float) -> tuple[float, float]:
        """`(right, forward)` coordinates of a world point."""
        dx, dz = x - self.x, z - self.z
        return self.cos * dx - self.sin * dz, self.sin * dx + self.cos * dz


class Scene:
    """Collects the surfaces of a scene: ground first, then one group per object, then
    what covers a part of the image.

    Args:
        rng: `np.random.Generator`, from which everything about the scene is drawn.
        view: View at Cityscapes' full image size.
    """

    def __init__(self, rng: np.random.Generator, view: View) -> None:
        self.rng = rng
        self.view = view
        self.frames: list[
            Frame
        ] = []  # planes; shorter than the next three by the covers
        self.outlines: list[Outline] = []
        self.identities: list[Identity] = []
        self.paints: list[Paint] = []
        self.windows: dict[int, Windows] = {}  # by surface number
        self.level: list[int] = []  # surfaces that objects stand on
        self.starts: list[int] = []  # first surface of each object
        # x and z ranges of each object, for the painting order.
        self.boxes: list[tuple[float, float, float, float]] = []
        # Corners on the ground, height of what casts it.
        self.shadows: list[tuple[list[tuple[float, float]], float]] = []
        self.counts: Counter[str] = Counter()

    def identity(self, name: str) -> Identity:
        """Label id and id in the instance map, of a new object if it can be one."""
        label = LABELS[LABEL_IDS[name]]
        if not label.has_instances:
            return label.id, label.id
        self.counts[name] += 1
        return label.id, label.id * FIRST_INSTANCE_ID + self.counts[name] - 1

    def begin(
        self, pose: Pose, half_width: float, half_length: float, height: float
    ) -> None:
        """Starts an object that stands on a rectangle around its pose."""
        x = abs(pose.cos) * half_width + abs(pose.sin) * half_length
        z = abs(pose.sin) * half_width + abs(pose.cos) * half_length
        self.starts.append(len(self.frames))
        self.boxes.append((pose.x - x, pose.x + x, pose.z - z, pose.z + z))
        signs = [(-1, -1), (-1, 1), (1, 1), (1, -1)]
        corners = [pose.point((i * half_width, 0, j * half_length)) for i, j in signs]
        self.shadows.append(([(x, z) for x, _, z in corners], height))

    def add(
        self,
        frame: Frame,
        outline: Outline,
        identity: Identity,
        paint: Paint,
        windows: Windows | None = None,
    ) -> None:
        """Adds a polygon on a plane."""
        if windows is not None:
            self.windows[len(self.frames)] = windows
        self.frames.append(frame)
        self.cover(outline, identity, paint)

    def cover(self, outline: Outline, identity: Identity, paint: Paint) -> None:
        """Hides a part of the image, `outline` in 0..1 of its width and height, and
        has no depth. All covers come after all surfaces that have a plane."""
        self.outlines.append(outline)
        self.identities.append(identity)
        self.paints.append(paint)

    def brush(self, frame: Frame, identity: Identity) -> Brush:
        """Function that adds `(outline, paint)` on one plane for one object."""
        return lambda outline, paint: self.add(frame, outline, identity, paint)

    def pave(
        self, outline: Outline, identity: Identity, paint: Paint, height: float = 0.0
    ) -> None:
        """Adds a level surface, painted before all objects; `(s, t)` is `(x, z)`."""
        self.level.append(len(self.frames))
        frame = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, height, 0.0)
        self.add(frame, outline, identity, paint)

    def billboard(self, pose: Pose) -> Frame:
        """Upright plane through a pose that faces the camera; s is right."""
        dx, dz = pose.x - self.view.position[0], pose.z
        distance = math.hypot(dx, dz)
        return (dz / distance, 0, -dx / distance) + UP + (pose.x, pose.y, pose.z)

    def color(self, material: Any) -> Color:
        """Random colour of a material: a range of brightness and a list of tints."""
        (low, high), tints = material
        value = low * (high / low) ** self.rng.random()
        tint = tints[self.rng.integers(len(tints))]
        red, green, blue = 0.88 + 0.24 * self.rng.random(3)
        return value * tint[0] * red, value * tint[1] * green, value * tint[2] * blue

    def paint(self, material: Any, **options: Any) -> Paint:
        """`Paint` in a random colour of a material."""
        return Paint(self.color(material), **options)


def scaled(color: Color, factor: float) -> Color:
    """A colour made brighter or darker."""
    return color[0] * factor, color[1] * factor, color[2] * factor


def rectangle(left: float, bottom: float, right: float, top: float) -> Outline:
    """Outline of an upright rectangle."""
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


@functools.cache
def unit_circle(corners: int) -> np.ndarray:
    """Corners of a regular polygon in the unit circle, `(corners, 2)`."""
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def ellipse(
    s: float,
    t: float,
    radius_s: float,
    radius_t: float | None = None,
    corners: int = 10,
) -> Outline:
    """Outline of an ellipse around `(s, t)`; of a circle with one radius."""
    radius_t = radius_s if radius_t is None else radius_t
    return (unit_circle(corners) * (radius_s, radius_t) + (s, t)).tolist()


def ring(s: float, t: float, radius: float, thickness: float) -> Outline:
    """Outline of a ring around `(s, t)` with this outer radius."""
    inner = ellipse(s, t, radius - thickness, corners=14)
    outer = ellipse(s, t, radius, corners=14)
    return outer + outer[:1] + inner[:1] + inner[::-1]


def triangle(t: float, r: float) -> Outline:
    """Upright triangle around `(0, t)`."""
    return [(-r, t - 0.6 * r), (r, t - 0.6 * r), (0, t + 1.1 * r)]


def bar(start: tuple[float, float], end: tuple[float, float], width: float) -> Outline:
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
