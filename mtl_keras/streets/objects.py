"""What stands beside a street at one place: plants, poles, signs, clutter.

An `add_` function adds one object, or more, at a pose; a `draw_` function, here and in
`vehicles` and `people`, draws on one plane, with the brush it is given. Lengths are in
metres.
"""

import math
from collections.abc import Sequence

import numpy as np

from mtl_keras.streets.surfaces import (
    BLACK,
    LEAF,
    PLANKS,
    SIDES,
    WHITE,
    Frame,
    Identity,
    Paint,
    Pose,
    Scene,
    bar,
    ellipse,
    rectangle,
    scaled,
    triangle,
    unit_circle,
)

# Ranges of brightness and tints of materials. They overlap on purpose: shape and
# position have to tell the classes apart, not colour.
MINERAL = (
    (0.1, 0.6),
    ((1, 1, 1), (1, 1, 1), (1.1, 1, 0.85), (1.25, 0.95, 0.7), (1.5, 0.8, 0.6))
    + ((1.15, 1, 0.8), (1.3, 0.9, 0.75), (0.9, 1, 1.15), (1.2, 1.05, 0.6)),
)
PLANT = (
    (0.03, 0.3),
    ((0.6, 1.15, 0.3), (0.65, 1.15, 0.35), (0.7, 1.15, 0.3), (0.75, 1.1, 0.45))
    + ((0.8, 1.15, 0.4), (0.95, 1.1, 0.35), (1.1, 1.05, 0.4), (0.7, 1.1, 0.5)),
)
PAINTED = (
    (0.02, 0.7),
    ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1.7, 0.5, 0.4), (0.5, 0.8, 1.5))
    + ((0.7, 1.1, 0.6), (1.4, 1.1, 0.5), (1.2, 1, 0.75), (0.8, 0.9, 1.2)),
)
SKIN = ((0.06, 0.5), ((1.25, 0.95, 0.75), (1.3, 0.9, 0.7)))


def add_tree(scene: Scene, pose: Pose, height: float) -> None:
    """Trunk, branches and a canopy of jagged clumps lit from above."""
    rng = scene.rng
    scene.begin(pose, 0.3, 0.3, 0.6 * height)
    draw = scene.brush(scene.billboard(pose), scene.identity("vegetation"))
    bark = Paint(
        scaled(scene.color(MINERAL), 0.6), texture=PLANKS, tile=1, contrast=0.4
    )
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


def add_pole(scene: Scene, pose: Pose, kind: str) -> None:
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


def add_traffic_light(scene: Scene, frame: Frame, s: float, top: float) -> None:
    """Three lamps in a box whose top edge is at `(s, top)`; one of them is lit."""
    draw = scene.brush(frame, scene.identity("traffic light"))
    draw(rectangle(s - 0.22, top - 1.0, s + 0.22, top), BLACK)
    lit = scene.rng.integers(3)
    for k, color in enumerate(((0.8, 0.05, 0.03), (0.8, 0.4, 0.02), (0.05, 0.7, 0.3))):
        lamp = Paint(color, 2.0) if k == lit else Paint(scaled(color, 0.15))
        draw(ellipse(s, top - 0.18 - 0.32 * k, 0.12), lamp)


def add_sign(scene: Scene, frame: Frame, t: float) -> None:
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


def add_clutter(scene: Scene, pose: Pose) -> None:
    """A bin, a box or a cabinet: void in the annotation."""
    rng = scene.rng
    width, depth, height = rng.uniform((0.25, 0.25, 0.5), (0.6, 0.5, 1.5)).tolist()
    scene.begin(pose, width, depth, height)
    identity = scene.identity(rng.choice(["static", "static", "unlabeled", "dynamic"]))
    paint = scene.paint(PAINTED, contrast=0.2)
    profile = [(-depth, 0.02, paint), (-depth, height, paint), (depth, height, paint)]
    extrude(scene, pose, identity, profile + [(depth, 0.02, paint)], width, paint)
    draw = scene.brush(pose.across(-depth), identity)
    draw(rectangle(-width, 0.75 * height, width, 0.9 * height), scene.paint(PAINTED))


def extrude(
    scene: Scene,
    pose: Pose,
    identity: Identity,
    profile: Sequence[tuple[float, float, Paint]],
    half_width: float,
    paint: Paint,
) -> tuple[float, int]:
    """Draws what the camera sees of a side profile swept across its width.

    Args:
        profile: `(forward, up, paint)` corners from the rear bottom over the top to
            the front bottom; each paint is that of the strip to the next corner, and
            the last one is not used.
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
