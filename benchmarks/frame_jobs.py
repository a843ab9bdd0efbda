"""Frames as large as those of Cityscapes, and what workers do with them; the module
imports nothing heavy."""

import os

import cv2
import numpy as np

from mtl_keras import streets
from mtl_keras.cityscapes import FILES, IMAGE_SIZE, frame_path
from mtl_keras.workers import WorkerPool

SCENES = 12  # that are rendered; every frame is one of them, by a hard link
NOISE = 2.0  # standard deviation, in grey values


def write_scene(job):
    """Writes the files of a scene, compressed as those of Cityscapes are."""
    root, index = job
    frame = streets.render_scene(index, IMAGE_SIZE)
    noise = np.random.default_rng(index).normal(0, NOISE, frame["image"].shape)
    frame["image"] = np.clip(frame["image"][..., ::-1] + noise, 0, 255).astype(np.uint8)
    for kind, array in frame.items():
        path = frame_path(root, "train", f"aachen_{index:06d}_000019", kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = [cv2.IMWRITE_PNG_COMPRESSION, 6]
        path.write_bytes(cv2.imencode(".png", array, settings)[1].tobytes())


def decode_frame(files):
    """Decodes the files of a frame with OpenCV, and does nothing with them."""
    for kind, path in files.paths.items():
        mode = cv2.IMREAD_COLOR_RGB if kind == "image" else cv2.IMREAD_UNCHANGED
        cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), mode)


def make_tree(root, count):
    """A tree of `count` frames, and the bytes of an image."""
    with WorkerPool(SCENES, min_jobs=1) as pool:
        for _ in pool.map(write_scene, [(root, index) for index in range(SCENES)]):
            pass
    sizes = []
    for index in range(SCENES, count):
        for kind in FILES:
            first = frame_path(
                root, "train", f"aachen_{index % SCENES:06d}_000019", kind
            )
            path = frame_path(root, "train", f"aachen_{index:06d}_000019", kind)
            os.link(first, path)
            if kind == "image":
                sizes.append(path.stat().st_size)
    return int(np.mean(sizes))
