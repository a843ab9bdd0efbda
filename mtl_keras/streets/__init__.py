"""Rendered street scenes with the labels and geometry of Cityscapes."""

from mtl_keras.streets.scenes import (
    SPLITS,
    VERSION,
    frame_id,
    render_scene,
    scene_seed,
    write_cityscapes_tree,
)

__all__ = [
    "SPLITS",
    "VERSION",
    "frame_id",
    "render_scene",
    "scene_seed",
    "write_cityscapes_tree",
]
