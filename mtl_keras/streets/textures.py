"""Textures of surfaces: tileable noise, bricks, slabs, leaves, planks."""

import functools
from typing import Any

import cv2
import numpy as np

from mtl_keras.streets.surfaces import (
    BRICK,
    GRAIN,
    LEAF,
    PLAIN,
    PLANKS,
    SLABS,
)

TILE = 128  # texels along one edge of a texture


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
