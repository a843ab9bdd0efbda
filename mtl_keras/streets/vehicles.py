"""Vehicles with four wheels or more; lengths are in metres."""

from collections.abc import Sequence

import numpy as np

from mtl_keras.streets.objects import PAINTED, extrude
from mtl_keras.streets.people import add_two_wheeler
from mtl_keras.streets.surfaces import (
    BLACK,
    PLANKS,
    WHITE,
    Brush,
    Identity,
    Paint,
    Pose,
    Scene,
    ellipse,
    rectangle,
    scaled,
)


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


def add_vehicle(scene: Scene, pose: Pose, kind: str, lamps: float = 0.0) -> None:
    """A car, or a vehicle of the kind that is named."""
    if kind == "car":
        add_car(scene, pose, lamps)
    elif kind in ("truck", "bus"):
        add_large_vehicle(scene, pose, kind, lamps)
    else:
        add_two_wheeler(scene, pose, kind == "motorcycle", True)
