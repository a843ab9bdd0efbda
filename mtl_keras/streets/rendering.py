"""Renders a scene of flat surfaces as image, labels and disparity.

Class, instance, inverse depth and colour of a pixel are looked up by the surface that
it shows, see `rasterization`: all of it agrees at every pixel. Colours are linear until
the last step.
"""

from typing import NamedTuple

import cv2
import numpy as np

from mtl_keras.cityscapes import CAMERA, IMAGE_SIZE, SKY_ID, encode_disparity
from mtl_keras.hints import Size
from mtl_keras.streets.rasterization import (
    NEAR,
    Planes,
    clip_near,
    rasterize,
    scale_view,
    subpixels,
)
from mtl_keras.streets.surfaces import (
    PLAIN,
    Scene,
    View,
)
from mtl_keras.streets.textures import TILE, texture_atlas, texture_values

SUPERSAMPLE = 2  # colour samples per pixel and axis; labels take one of them


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
    surface, planes = rasterize(scene, view, size)
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
