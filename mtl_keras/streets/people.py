"""People, on foot and on two wheels; lengths are in metres."""

import math

from mtl_keras.streets.objects import PAINTED, SKIN
from mtl_keras.streets.surfaces import (
    BLACK,
    SIDES,
    WHITE,
    Brush,
    Paint,
    Pose,
    Scene,
    bar,
    ellipse,
    rectangle,
    ring,
    scaled,
)


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
