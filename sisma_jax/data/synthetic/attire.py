"""Neck, clothes, necklace, earrings and glasses: outlines in head and body coordinates."""

from dataclasses import dataclass

import numpy as np

from sisma_jax.data.synthetic.curves import Points, ellipse, mirrored, ribbon, smooth
from sisma_jax.data.synthetic.features import Build, Ear
from sisma_jax.data.synthetic.head import Chance, Pose

NECKLINES = {"crew": 0.30, "scoop": 0.20, "vee": 0.20, "collar": 0.18, "turtleneck": 0.12}
FRAMES = {"round": 0.3, "square": 0.45, "aviator": 0.25}


@dataclass(frozen=True)
class Body:
    """Neck with bare shoulders, the cloth over them, its folded collar and its neckline.

    `slack` is how far below the neck's base a necklace may hang.
    """

    neck: Points
    cloth: list[Points]
    collar: list[Points]
    neckline: Points
    slack: float
    neck_width: float


def sample_body(chance: Chance, pose: Pose, build: Build) -> Body:
    width = chance.about(0.63, 0.05)
    slope = chance.between(0.0, 0.24)
    high = build.chin + chance.about(0.05, 0.04)
    half = [(width, 0.6), (0.97 * width, high - 0.18), (1.12 * width, high + 0.03),
            (1.3, high + 0.20 + 0.5 * slope), (2.0, high + 0.40 + 1.5 * slope)]  # fmt: skip
    half = np.concatenate([smooth(half, closed=False), [(2.6, 3.2), (0, 3.2)]])
    kind = chance.pick(NECKLINES)
    depth = {"crew": 0.26, "scoop": 0.40, "vee": 0.62, "collar": 0.36, "turtleneck": -0.06}[kind]
    depth = high + depth + chance.about(0.0, 0.03)
    start = {"scoop": 1.22, "vee": 1.14}.get(kind, 1.04) * width
    top = high + (0.04 if kind == "scoop" else 0)
    if kind == "turtleneck":
        start, top = 1.01 * width, high - 0.20
    sharp = {"vee": 0.45, "collar": 0.42}.get(kind, 0.85)
    edge = np.array(
        [(-start, top), (-0.62 * start, top + sharp * (depth - top) * 0.72), (0, depth),
         (0.62 * start, top + sharp * (depth - top) * 0.72), (start, top)]
    )  # fmt: skip
    edge = smooth(edge, closed=False) if sharp > 0.5 else edge
    shoulder = smooth(
        [
            (start, top - 0.015),
            (1.10, high + 0.06 + 0.35 * slope),
            (1.65, high + 0.14 + 0.9 * slope),
            (2.15, high + 0.36 + 1.5 * slope),
            (2.8, 3.2),
        ],
        closed=False,
    )
    outline = [*edge, *shoulder, *(shoulder[::-1] * (-1, 1))]
    cloth = [pose.body(np.array(outline))]
    collar = []
    if kind == "collar":
        for side in (-1, 1):
            flap = [(side * start * 0.97, top - 0.09), (side * start * 1.10, top + 0.02),
                    (side * 0.60, depth + 0.05), (side * 0.02, depth)]  # fmt: skip
            collar.append(pose.body(np.array(flap)))
        cloth += collar
    return Body(
        neck=pose.body(mirrored(half)),
        cloth=cloth,
        collar=collar,
        neckline=pose.body(edge),
        slack=(depth if kind in ("scoop", "vee", "collar") else high + 0.42) - high,
        neck_width=width,
    )


def necklace(chance: Chance, pose: Pose, build: Build, body: Body, pixel: float) -> list[Points]:
    top = build.chin + 0.06
    low = top + float(np.clip(body.slack - 0.08, 0.20, 0.42))
    wide = 0.98 * body.neck_width
    line = [(-wide, top - 0.12), (-0.72 * wide, top + 0.55 * (low - top)), (0, low),
            (0.72 * wide, top + 0.55 * (low - top)), (wide, top - 0.12)]  # fmt: skip
    line = pose.body(smooth(line, closed=False))
    width = max(chance.between(0.045, 0.085) * pose.scale, 1.3 * pixel)
    shapes = [ribbon(line, width)]
    if chance.happens(0.5):
        radius = max(chance.between(0.05, 0.09) * pose.scale, pixel)
        x, y = line[len(line) // 2]
        shapes.append(ellipse(x, y + radius, radius * 0.8, radius * 1.1))
    return shapes


def earring(kind: str, ear: Ear, scale: float, pixel: float) -> list[Points]:
    """A stud, a drop or a hoop that hangs from the lobe; sizes stay visible at any resolution."""
    x, y = ear.lobe
    bead = max(0.062 * scale, 1.0 * pixel)
    if kind == "stud":
        return [ellipse(x, y, bead, bead)]
    if kind == "drop":
        length = 0.22 * scale
        hook = ellipse(x, y, 0.6 * bead, 0.6 * bead)
        return [hook, ellipse(x, y + bead + length / 2, 1.05 * bead, bead + length / 2)]
    radius = 0.17 * scale
    ring = ellipse(x, y + radius * 0.9, radius * 0.75, radius)
    return [ribbon(np.concatenate([ring, ring[:2]]), max(0.05 * scale, 1.3 * pixel))]


@dataclass(frozen=True)
class Glasses:
    """`shapes` cover frame and lens, `lenses` the lens alone; `dark` ones hide the eyes."""

    shapes: list[Points]
    lenses: tuple[Points, Points]
    dark: bool


def sample_glasses(chance: Chance, pose: Pose, build: Build) -> Glasses:
    kind = chance.pick(FRAMES)
    width = chance.about(0.325, 0.02)
    height = {"round": 0.285, "square": 0.215, "aviator": 0.27}[kind] + chance.about(0.0, 0.015)
    corner = {"round": 2.0, "square": 4.5, "aviator": 2.8}[kind]
    rim = chance.between(0.045, 0.075)
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle)], 1)
    unit = np.sign(unit) * np.abs(unit) ** (2 / corner)
    if kind == "aviator":  # taper towards the cheek
        unit[:, 0] *= 1 - 0.16 * (unit[:, 1] + 1) / 2
    centre = np.array([build.eye_gap + 0.02, 0.035])
    lenses = pose.on_both_sides(unit * (width, height) + centre, 0.06)
    frames = pose.on_both_sides(unit * (width + rim, height + rim) + centre, 0.06)
    arm = np.array([(x, -0.06) for x in np.linspace(centre[0] + width, 1.0, 5)])
    lift = np.linspace(0.05, 0, 5)
    arms = pose.on_both_sides(ribbon(arm, 1.6 * rim), np.concatenate([lift, lift[::-1]]))
    x = np.linspace(-1, 1, 9) * (centre[0] - width + 0.02)
    bridge = np.stack([x, -0.05 - 0.05 * (1 - (x / x[-1]) ** 2)], 1)
    bridge = pose.on_face(ribbon(bridge, 1.3 * rim), 0.10)
    return Glasses([*frames, *arms, bridge], lenses, dark=chance.happens(0.15))
