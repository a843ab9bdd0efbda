"""Renders a scene of flat surfaces as image, labels and disparity.

The surfaces are painted far to near into one buffer of surface numbers, and
everything else (class, instance, inverse depth, colour) is looked up by surface, so
that all of it agrees at every pixel. With the camera matrix `K`, a plane has the
image matrix `M = K [a b origin]`, and `inv(M) [u, v, 1] = [s, t, 1] / Z` gives the
texture coordinates and the exact inverse depth of a pixel. Colours are linear until
the last step.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from mtl_keras.cityscapes import CAMERA, IMAGE_SIZE, SKY_ID, encode_disparity
from mtl_keras.hints import Size
from mtl_keras.streets.surfaces import (
    BRICK,
    GRAIN,
    LEAF,
    PLAIN,
    PLANKS,
    SLABS,
    UP,
    Scene,
    View,
)

SUPERSAMPLE = 2  # colour samples per pixel and axis; labels take one of them
NEAR = 0.5  # surfaces are clipped at this depth, metres
TILE = 128  # texels along one edge of a texture


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


def rasterise(scene: Scene, view: View, size: Size) -> tuple[np.ndarray, Planes]:
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


def waves(rng: np.random.Generator, octaves: Any, decay: float = 0.6) -> np.ndarray:
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
def texture_atlas(levels: int = 6) -> np.ndarray:
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


def texture_values(
    texture: int | np.ndarray, level: int | np.ndarray, s: np.ndarray, t: np.ndarray
) -> np.ndarray:
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


def locate_pixels(surface: np.ndarray, planes: Planes) -> Pixels:
    """Looks up the `Pixels` of a buffer of surface numbers."""
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


def surface_light(normals: np.ndarray, weather: Weather) -> np.ndarray:
    """Light on each surface, `(n, 3)`."""
    lit = np.maximum(normals @ weather.sun, 0)[:, None]
    ambient = 0.75 + 0.25 * normals[:, 1:2]
    return ambient * weather.ambient + lit * weather.sunlight


def add_windows(
    scene: Scene, pixels: Pixels, color: np.ndarray, gain: np.ndarray, weather: Weather
) -> None:
    """Draws the windows of facades, in place on `color` and its factor `gain`."""
    layout = np.zeros((len(scene.paints) + 1, 6), np.float32)  # the last: sky
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


def shade_sky(
    view: View,
    surface: np.ndarray,
    color: np.ndarray,
    weather: Weather,
    rng: np.random.Generator,
) -> None:
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


def shadow_map(scene: Scene, view: View, size: Size, weather: Weather) -> np.ndarray:
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
            outline = clip_near(outlines[k]) if nearest[k] < NEAR else outlines[k]
            hull = cv2.convexHull(subpixels(outline))
            cv2.fillConvexPoly(shadow, hull, darkness, shift=4)
    return cv2.blur(shadow, (3, 3)).astype(np.float32) / 255


def shade(
    scene: Scene, view: View, pixels: Pixels, planes: Planes, weather: Weather
) -> np.ndarray:
    """Linear colour of each sample, `(H, W, 3)` float32."""
    paints = scene.paints
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
    shade_sky(view, pixels.surface, color, weather, scene.rng)
    return color


def expose(color: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photograph of the linear samples: lens blur, exposure, tint, tone and noise.

    Args:
        color: `(SUPERSAMPLE * H, SUPERSAMPLE * W, 3)` linear.

    Returns:
        `(H, W, 3)` uint8 RGB; a pixel is centred on its first sample.
    """
    color = cv2.GaussianBlur(color, (5, 5), rng.uniform(0.75, 1.2))
    color = color[::SUPERSAMPLE, ::SUPERSAMPLE]
    height, width = color.shape[:2]
    gain = np.exp(rng.uniform(-0.35, 0.35)) * 0.5 / (color.mean() + 0.15)
    warmth, green = rng.normal(0, 0.07), rng.normal(0, 0.02)
    balance = gain * np.exp([warmth, green, -warmth])
    color = color * balance.astype(np.float32)
    grey = color.mean(axis=2, keepdims=True)
    color = grey + (color - grey) * np.float32(rng.uniform(0.8, 1.35))
    row = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    column = np.linspace(-1, 1, width, dtype=np.float32)
    color *= (1 - rng.uniform(0, 0.25) * (row**2 + column**2) / 2)[..., None]
    tone = np.maximum(color, 0) ** np.float32(1 / rng.uniform(1.7, 2.5))
    noise = rng.standard_normal(color.shape, np.float32)
    tone += noise * np.float32(rng.uniform(0.004, 0.02))
    lift = rng.uniform(0, 0.08)
    return np.clip(255 * (lift + (1 - lift) * tone), 0, 255).astype(np.uint8)


def blotches(rng: np.random.Generator, size: Size, cell: int) -> np.ndarray:
    """Smooth uniform-ish noise 0..1, `(H, W)` float32, in blobs of `cell` pixels."""
    height, width = size
    coarse = rng.random((height // cell + 2, width // cell + 2), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def match_stereo(
    disparity: np.ndarray, unmatched: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
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


def render(scene: Scene, weather: Weather, image_size: Size) -> dict[str, np.ndarray]:
    """Renders a scene.

    Args:
        scene: Scene.
        weather: Weather.
        image_size: `(height, width)`, any.

    Returns:
        dict of arrays `(H, W)`: `image` `(H, W, 3)` uint8 RGB, `semantic` uint8
        label ids, `instance` uint16 as in Cityscapes' `instanceIds`, and
        `disparity` uint16, 0 where invalid, else `256 d + 1` rounded, with d in
        pixels of this image's width.
    """
    height, width = image_size
    view = scale_view(scene.view, image_size, SUPERSAMPLE)
    size = (SUPERSAMPLE * height, SUPERSAMPLE * width)
    surface, planes = rasterise(scene, view, size)
    pixels = locate_pixels(surface, planes)
    color = shade(scene, view, pixels, planes, weather)

    surface = surface[::SUPERSAMPLE, ::SUPERSAMPLE]
    inverse_depth = pixels.inverse_depth[::SUPERSAMPLE, ::SUPERSAMPLE]
    # The last entry is the sky, surface -1.
    identities = np.array(scene.identities + [(SKY_ID, SKY_ID)])
    unmatched = [paint.unmatched for paint in scene.paints] + [0.0]
    unmatched = np.array(unmatched, np.float32)[surface]
    in_world = (surface >= 0) & (surface < len(scene.frames))
    focal = CAMERA.fx * width / IMAGE_SIZE[1]
    disparity = CAMERA.baseline * focal * inverse_depth * in_world
    matched = match_stereo(disparity, unmatched, scene.rng) & in_world
    return {
        "image": expose(color, scene.rng),
        "semantic": identities[surface, 0].astype(np.uint8),
        "instance": identities[surface, 1].astype(np.uint16),
        "disparity": np.where(matched, encode_disparity(disparity), 0),
    }
