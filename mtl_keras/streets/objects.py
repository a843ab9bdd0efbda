"""What stands on or beside a street at one place: plants, furniture, vehicles, people.

An `add_` function adds one object, or more, at a pose; a `draw_` function draws on
one plane, with the brush it is given. Lengths are in metres.
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
    Brush,
    Frame,
    Identity,
    Paint,
    Pose,
    Scene,
    bar,
    ellipse,
    rectangle,
    ring,
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


def add_wheels(draw: Brush, axles: Sequence[float], radius: float, hub: Paint) -> None:
    """Tyre and hub at each axle, `radius` metres above the ground."""
    for f in axles:
        draw(ellipse(f, radius, radius, corners=14), BLACK)
        draw(ellipse(f, radius, 0.58 * radius), hub)


def add_end(
    draw: Brush, end: int, half_width: float, low: float, lamp: float, glow: float
) -> None:
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


def glass_paint(scene: Scene) -> Paint:
    """Dark glass, which a stereo matcher often fails on."""
    shade = scene.rng.uniform(0.02, 0.2)
    color = (shade, 1.05 * shade, 1.1 * shade)
    return Paint(color, tile=6, contrast=0.3, unmatched=0.55)


def add_car(scene: Scene, pose: Pose, lamps: float = 0.0) -> None:
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
        (front, low, body),
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


def add_large_vehicle(scene: Scene, pose: Pose, name: str, lamps: float = 0.0) -> None:
    """A truck or a bus."""
    rng = scene.rng
    low, high = {
        "truck": ((6, 1.05, 2.6), (10, 1.27, 3.7)),
        "bus": ((9, 1.2, 2.8), (12, 1.27, 3.3)),
    }[name]
    length, width, height = rng.uniform(low, high).tolist()
    rear, front = -length / 2, length / 2
    scene.begin(pose, width, front, height)
    identity = scene.identity(name)
    add_body = add_truck_body if name == "truck" else add_bus_body
    side, end = add_body(scene, pose, identity, front, width, height)
    if side:
        hub = Paint(scaled((1, 1, 1), rng.uniform(0.05, 0.35)))
        axles = (rear + 0.22 * length, front - 0.2 * length)
        add_wheels(scene.brush(pose.side(side), identity), axles, 0.48, hub)
    if end:
        draw = scene.brush(pose.across(end * front), identity)
        add_end(draw, end, width, 0.4, 0.85, lamps)


def add_bus_body(
    scene: Scene,
    pose: Pose,
    identity: Identity,
    front: float,
    width: float,
    height: float,
) -> tuple[float, int]:
    """One box with a stripe, bands of windows, doors and a lit board."""
    rng = scene.rng
    body = scene.paint(PAINTED, tile=8, contrast=0.1, unmatched=0.05)
    glass = glass_paint(scene)
    profile = [(-front, 0.3, body), (0.1 - front, height, body)]
    profile += [(front - 0.2, height, body), (front, 0.3, body)]
    side, end = extrude(scene, pose, identity, profile, width, body)
    if end:
        draw = scene.brush(pose.across(end * (front - 0.1)), identity)
        draw(rectangle(0.15 - width, 1.2, width - 0.15, height - 0.55), glass)
        board = Paint((0.5, 0.35, 0.05), glow=0.8, tile=0.5, contrast=0.8)
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


def add_truck_body(
    scene: Scene,
    pose: Pose,
    identity: Identity,
    front: float,
    width: float,
    height: float,
) -> tuple[float, int]:
    """Cab and load, the farther one first."""
    rng = scene.rng
    body = scene.paint(PAINTED, tile=8, contrast=0.1, unmatched=0.05)
    load = scene.paint(PAINTED, texture=PLANKS, tile=4)
    glass = glass_paint(scene)
    split, top = front - rng.uniform(1.7, 2.2), rng.uniform(2.2, 2.7)
    cargo = [(-front, 0.75, load), (-front, height, load)]
    cargo += [(split - 0.2, height, load), (split - 0.2, 0.75, load)]
    cab = [(split, 0.45, body), (split, top, body), (front - 0.3, top, glass)]
    cab += [(front - 0.05, 1.3, body), (front, 0.35, body)]
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


def add_two_wheeler(scene: Scene, pose: Pose, motor: bool, ridden: bool) -> None:
    """A bicycle or motorcycle, parked or ridden, seen from its side or its end."""
    rng = scene.rng
    scene.begin(pose, 0.3, 0.8, 1.2)
    identity = scene.identity("motorcycle" if motor else "bicycle")
    rider = scene.identity("rider") if ridden else identity
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


def draw_bicycle(scene: Scene, draw: Brush) -> None:
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


def draw_motorcycle(scene: Scene, draw: Brush) -> None:
    """Wheels, frame, tank and bar, seen from the side."""
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


def draw_rider(scene: Scene, draw: Brush, motor: bool) -> None:
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


def draw_person(
    scene: Scene, draw: Brush, height: float = 1.75, seat: float | None = None
) -> None:
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


def add_pedestrian(scene: Scene, pose: Pose) -> None:
    """An adult or a child who faces the camera."""
    scene.begin(pose, 0.25, 0.2, 1.7)
    child = scene.rng.random() < 0.12
    height = scene.rng.uniform(1.0, 1.4) if child else scene.rng.uniform(1.58, 1.92)
    draw = scene.brush(scene.billboard(pose), scene.identity("person"))
    draw_person(scene, draw, height)


def add_vehicle(scene: Scene, pose: Pose, kind: str, lamps: float = 0.0) -> None:
    """A car, or a vehicle of the kind that is named."""
    if kind == "car":
        add_car(scene, pose, lamps)
    elif kind in ("truck", "bus"):
        add_large_vehicle(scene, pose, kind, lamps)
    else:
        add_two_wheeler(scene, pose, kind == "motorcycle", True)
