"""Which surface each pixel of a scene shows.

The surfaces are painted far to near into one buffer of surface numbers. With the camera
matrix `K`, a plane has the image matrix `M = K [a b origin]`, and `inv(M) [u, v, 1] =
[s, t, 1] / Z` gives the texture coordinates and the exact inverse depth of a pixel.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from mtl_keras.cityscapes import IMAGE_SIZE
from mtl_keras.hints import Size
from mtl_keras.streets.surfaces import (
    UP,
    Scene,
    View,
)

NEAR = 0.5  # surfaces are clipped at this depth, metres


def scale_view(view: View, image_size: Size, supersample: int = 1) -> View:
    """The view at another image size. With `supersample`, every n-th sample lies on
    the centre of a pixel."""
    height, width = image_size
    full_height, full_width = IMAGE_SIZE
    x_scale, y_scale = width / full_width, height / full_height
    resize = np.diag([x_scale, y_scale, 1.0])
    resize[:2, 2] = 0.5 * x_scale - 0.5, 0.5 * y_scale - 0.5
    finer = np.diag([supersample, supersample, 1.0])
    return view._replace(intrinsics=finer @ resize @ view.intrinsics)


def paint_order(boxes: np.ndarray) -> list[int]:
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


def subpixels(points: np.ndarray) -> np.ndarray:
    """Homogeneous image points in sixteenths of a pixel, OpenCV's `shift=4`."""
    return np.round(16 * points[:, :2] / points[:, 2:]).astype(np.int32)


def clip_near(points: np.ndarray) -> np.ndarray:
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


def image_matrices(
    scene: Scene, view: View, size: Size
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the surfaces of a scene lie in the image.

    Returns:
        Matrices `(n, 3, 3)` from `(s, t, 1)` to homogeneous image points, unit
        normals towards the camera `(n, 3)`, and whether a surface is seen edge-on
        and has no image, `(n,)` bool.
    """
    frames = np.array(scene.frames).reshape(-1, 3, 3)
    frames[:, 2] -= view.position
    normals = np.cross(frames[:, 0], frames[:, 1])
    toward = -np.einsum("ni,ni->n", normals, frames[:, 2])
    normals *= np.sign(toward)[:, None]
    matrices = view.intrinsics @ view.rotation @ frames.transpose(0, 2, 1)
    covers = len(scene.outlines) - len(frames)
    scale = np.diag([size[1], size[0], 1.0])
    matrices = np.concatenate([matrices, np.tile(scale, (covers, 1, 1))])
    normals = np.concatenate([normals, np.tile(UP, (covers, 1))])
    edge_on = np.append(np.abs(toward) < 1e-3, np.zeros(covers, bool))
    matrices[edge_on] = np.eye(3)
    return matrices, normals, edge_on


def rasterize(scene: Scene, view: View, size: Size) -> tuple[np.ndarray, Planes]:
    """Paints all surfaces far to near.

    Args:
        view: View with intrinsics in pixels of `size`.
        size: `(height, width)`.

    Returns:
        Surface number of each pixel, `(H, W)` int32, -1 for sky, and the `Planes`.
    """
    height, width = size
    matrices, normals, edge_on = image_matrices(scene, view, size)
    lengths = np.array([len(outline) for outline in scene.outlines])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    corners = np.ones((ends[-1], 3))
    corners[:, :2] = [corner for outline in scene.outlines for corner in outline]
    owner = np.repeat(np.arange(len(lengths)), lengths)
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
    fixed = np.round(16 * pixels).astype(np.int32)
    for k in drawing_order(scene):
        if not visible[k]:
            continue
        outline = fixed[starts[k] : ends[k]]
        if crosses[k]:
            outline = subpixels(clip_near(points[starts[k] : ends[k]]))
        cv2.fillPoly(surface, [outline], int(k), shift=4)
    inverse = np.linalg.inv(matrices).reshape(-1, 9)
    return surface, Planes(inverse, low, high, normals)


def drawing_order(scene: Scene) -> Iterator[int]:
    """Numbers of all surfaces: ground, objects far to near, then the covers."""
    count = len(scene.frames)
    boxes = np.array(scene.boxes) - scene.view.position[[0, 0, 2, 2]]
    starts, level = scene.starts, set(scene.level)
    yield from range(starts[0])
    yield from (k for k in scene.level if k >= starts[0])
    ranges = list(zip(starts, starts[1:] + [count]))
    for index in paint_order(boxes):
        yield from (k for k in range(*ranges[index]) if k not in level)
    yield from range(count, len(scene.outlines))
