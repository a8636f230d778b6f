"""Outlines of the face itself: jaw, ears, nose, mouth, eyes and brows, in head coordinates.

Every function samples its own proportions and returns outlines in picture coordinates. A `side` is
+1 for the viewer's right (the subject's left, `l_`) and -1 for the viewer's left (`r_`).
"""

from dataclasses import dataclass

import numpy as np

from sisma_jax.data.synthetic.curves import Points, ellipse, mirrored, smooth
from sisma_jax.data.synthetic.head import Chance, Pose


@dataclass(frozen=True)
class Build:
    """Proportions that several parts share, in head coordinates."""

    chin: float
    jaw: float
    eye_gap: float
    nose_base: float
    nose_width: float
    mouth: float
    smile: float


def sample_build(chance: Chance) -> Build:
    nose_base = chance.about(0.60, 0.035)
    return Build(
        chin=chance.about(1.50, 0.06),
        jaw=chance.about(0.78, 0.055),
        eye_gap=chance.about(0.435, 0.018),
        nose_base=nose_base,
        nose_width=chance.about(0.235, 0.022),
        mouth=nose_base + chance.about(0.40, 0.025),
        smile=float(np.clip(chance.about(0.50, 0.45), -0.15, 1.15)),
    )


def face_outline(chance: Chance, pose: Pose, build: Build) -> Points:
    chin_width = chance.about(0.24, 0.035) + 0.25 * (build.jaw - 0.78)
    cheek = chance.about(0.945, 0.012) + 0.02 * build.smile
    half = [
        (0, -1.40),
        (0.48, -1.31),
        (0.84, -0.98),
        (0.97, -0.50),
        (1.0, -0.02),
        (cheek, 0.46),
        (build.jaw, 0.95),
        (0.55 * build.jaw + 0.4 * chin_width, 0.86 * build.chin),
        (chin_width, build.chin - 0.045),
        (0, build.chin),
    ]
    return pose.silhouette(smooth(mirrored(half)))


@dataclass(frozen=True)
class Ear:
    """An ear's outline, the curve of its inner fold and the point an earring hangs from."""

    outline: Points
    fold: Points
    lobe: np.ndarray
    facing: bool
    in_front: bool


def ear(pose: Pose, build: Build, side: int, size: float) -> Ear:
    """The ear on `side`; `facing` tells whether the lobe shows, `in_front` whether it is nearer."""
    attached = np.sin(np.clip(side * 1.50 + pose.yaw, -1.65, 1.65))
    edge = 1.0 + 0.19 * size
    outer = edge * np.sin(side * 1.72 + pose.yaw)
    in_front = side * pose.yaw < -0.05
    template = np.array(
        [
            (-0.25, 0.02), (0.30, -0.16), (0.80, -0.12), (1.02, 0.16), (0.92, 0.46), (0.66, 0.70),
            (0.44, 0.92), (0.12, 1.0), (-0.2, 0.86),
        ]
    )  # fmt: skip
    fold = np.array([(0.30, 0.02), (0.66, 0.02), (0.76, 0.22), (0.62, 0.48), (0.36, 0.60)])
    top, height = -0.10, (0.12 + build.nose_base) * size

    def place(shape: np.ndarray) -> Points:
        hidden = 0.0 if in_front else -0.5 * side * np.clip(-shape[:, 0], 0, 1)
        x = attached + shape[:, 0] * (outer - attached) + hidden
        return pose.turned(x, top + shape[:, 1] * height, 0.1)

    return Ear(
        outline=place(smooth(template)),
        fold=place(smooth(fold, closed=False)),
        lobe=place(np.array([(0.28, 0.93)]))[0],
        facing=side * outer > 1.03,
        in_front=in_front,
    )


def nose_outline(pose: Pose, build: Build) -> Points:
    wide, base = build.nose_width, build.nose_base
    half = np.array(
        [  # x, y, out of the face
            (0.0, -0.06, 0.03), (0.085, -0.03, 0.03), (0.075, 0.14, 0.08), (0.10, 0.30, 0.12),
            (0.72 * wide, base - 0.19, 0.10), (wide, base - 0.08, 0.03),
            (0.90 * wide, base, 0.03), (0.55 * wide, base + 0.02, 0.10),
            (0.22 * wide, base + 0.05, 0.16), (0.0, base + 0.06, 0.17),
        ]
    )  # fmt: skip
    whole = smooth(mirrored(half))
    return pose.on_face(whole[:, :2], whole[:, 2])


def nostrils(pose: Pose, build: Build) -> list[Points]:
    shapes = []
    for side in (-1, 1):
        hole = ellipse(0, 0, 0.30 * build.nose_width, 0.032) @ np.array([[1, -0.25 * side], [0, 1]])
        hole += (side * 0.45 * build.nose_width, build.nose_base + 0.008)
        shapes.append(pose.on_face(hole, 0.10))
    return shapes


def nose_wings(pose: Pose, build: Build) -> list[Points]:
    """The creases around the nostrils' outer walls."""
    wide, base = build.nose_width, build.nose_base
    line = [(0.86 * wide, base - 0.15), (1.04 * wide, base - 0.08), (0.92 * wide, base + 0.005)]
    line = smooth(line, closed=False)
    return [pose.on_face(line * (side, 1), 0.03) for side in (-1, 1)]


def smile_folds(pose: Pose, build: Build) -> list[Points]:
    """The lines from the nose's wings past the corners of the mouth."""
    wide = 0.03 * max(build.smile, 0)
    base, mouth = build.nose_base, build.mouth
    line = [(build.nose_width + 0.04, base - 0.08), (0.38 + wide, base + 0.10),
            (0.46 + 2 * wide, mouth - 0.10), (0.47 + 2 * wide, mouth + 0.06)]  # fmt: skip
    line = smooth(line, closed=False)
    return [pose.on_face(line * (side, 1)) for side in (-1, 1)]


@dataclass(frozen=True)
class Mouth:
    """Lips, the opening between them (None when shut), the seam, and the teeth."""

    upper: Points
    lower: Points
    opening: Points | None
    seam: Points
    teeth: list[Points]
    centre: np.ndarray
    half_width: float


def mouth(chance: Chance, pose: Pose, build: Build) -> Mouth:
    smile = build.smile
    half = chance.about(0.345, 0.02) + 0.06 * smile
    top = chance.about(0.105, 0.014) - 0.02 * smile
    bottom = chance.about(0.155, 0.02) - 0.03 * smile
    gap = 0.0
    if chance.happens(0.20 + 0.42 * max(smile, 0)):
        gap = chance.between(0.08, 0.16) + 0.06 * max(smile, 0)

    def bend(points: list[tuple[float, float]]) -> np.ndarray:
        """From (share of the half width, y) to head coordinates with the corners lifted."""
        x, y = np.asarray(points, np.float64).T
        lift = smile * (0.10 * x**2 - 0.03)
        return np.stack([x * half, build.mouth + y - lift], 1)

    def place(points: np.ndarray) -> Points:
        return pose.on_face(points, 0.07 * (1 - (points[:, 0] / half) ** 2))

    shut = 0.010
    crown = bend([(-1, 0), (-0.58, -0.52 * top), (-0.20, -top), (0, -0.80 * top),
                  (0.20, -top), (0.58, -0.52 * top), (1, 0)])  # fmt: skip
    upper_edge = bend([(-1, 0), (-0.5, -0.30 * gap + shut), (0, -0.36 * gap + shut * 1.5),
                       (0.5, -0.30 * gap + shut), (1, 0)])  # fmt: skip
    lower_edge = bend([(-1, 0), (-0.55, 0.50 * gap + shut), (0, 0.64 * gap + shut * 1.5),
                       (0.55, 0.50 * gap + shut), (1, 0)])  # fmt: skip
    base = bend([(-1, 0), (-0.68, 0.56 * bottom + 0.46 * gap), (-0.3, 0.96 * bottom + 0.63 * gap),
                 (0.3, 0.96 * bottom + 0.63 * gap), (0.68, 0.56 * bottom + 0.46 * gap),
                 (1, 0)])  # fmt: skip
    crown, upper_edge, lower_edge, base = (
        smooth(curve, closed=False) for curve in (crown, upper_edge, lower_edge, base)
    )
    if gap:  # the corners of an open mouth are lip, not hole
        upper_edge = upper_edge * (0.93, 1)
        lower_edge = lower_edge * (0.93, 1)
    teeth = []
    if gap:
        drop = chance.between(0.45, 0.75) * gap
        teeth.append(np.concatenate([upper_edge, (upper_edge * (0.86, 1) + (0, drop))[::-1]]))
        if gap > 0.17 and chance.happens(0.5):
            teeth.append(
                np.concatenate([lower_edge * (0.8, 1), (lower_edge * (0.7, 1) - (0, 0.05))[::-1]])
            )
    return Mouth(
        upper=place(np.concatenate([crown, upper_edge[::-1]])),
        lower=place(np.concatenate([lower_edge, base[::-1]])),
        opening=place(np.concatenate([upper_edge, lower_edge[::-1]])) if gap else None,
        seam=place(upper_edge),
        teeth=[place(shape) for shape in teeth],
        centre=place(np.array([(0.0, build.mouth)]))[0],
        half_width=half * pose.scale,
    )


@dataclass(frozen=True)
class Eye:
    """An eye's opening, its lids and iris; `iris` is x, y, horizontal and vertical radius."""

    opening: Points
    upper_lid: Points
    lower_lid: Points
    crease: Points
    iris: tuple[float, float, float, float]


@dataclass(frozen=True)
class Gaze:
    """What both eyes share: size, openness, slant, where they look."""

    half_width: float
    height: float
    slant: float
    x: float
    y: float
    crease: float


def sample_gaze(chance: Chance, pose: Pose, build: Build) -> Gaze:
    return Gaze(
        half_width=chance.about(0.208, 0.011),
        height=chance.about(0.109, 0.012) - 0.012 * max(build.smile, 0),
        slant=chance.about(0.008, 0.014),
        x=chance.about(0.0, 0.025) - 0.10 * np.sin(pose.yaw),
        y=chance.about(-0.004, 0.008),
        crease=chance.about(0.055, 0.014),
    )


def eye(pose: Pose, build: Build, gaze: Gaze, side: int) -> Eye:
    upper = np.array([(-1.06, 0.30), (-0.70, -0.46), (-0.1, -1.0), (0.52, -0.82), (1.05, 0.08)])
    lower = np.array([(1.05, 0.08), (0.55, 0.66), (0.0, 0.84), (-0.62, 0.62), (-1.06, 0.30)])

    def place(curve: np.ndarray, lift: float = 0.0) -> Points:
        x = side * (build.eye_gap + curve[:, 0] * gaze.half_width)
        y = curve[:, 1] * gaze.height - gaze.slant * curve[:, 0] - lift
        return pose.on_face(np.stack([x, y], 1), -0.03)

    upper, lower = smooth(upper, closed=False), smooth(lower, closed=False)
    lifted = upper[(upper[:, 0] > -0.95) & (upper[:, 0] < 1.03)]
    radius = 0.102
    at_x, at_y = side * build.eye_gap + gaze.x, gaze.y - 0.012
    places = pose.on_face(np.array([(at_x, at_y), (at_x + 0.02, at_y)]), -0.03)
    (x, y), (x_right, _) = places.tolist()
    turned = min(max((x_right - x) / (0.02 * pose.scale), 0.55), 1)
    return Eye(
        opening=place(np.concatenate([upper, lower[1:-1]])),
        upper_lid=place(upper),
        lower_lid=place(lower),
        crease=place(lifted, gaze.crease),
        iris=(x, y, radius * turned * pose.scale, radius * pose.scale),
    )


def brow_line(chance: Chance) -> tuple[np.ndarray, np.ndarray]:
    """Centre line (n, 2) of the brow on the viewer's right and its width at each point."""
    height = chance.about(0.335, 0.022)
    arch = chance.about(0.040, 0.020)
    angle = chance.about(-0.006, 0.020)
    thickness = chance.about(0.088, 0.014)
    line = np.array(
        [
            (0.185, -height + 0.020 + angle),
            (0.225, -height + 0.006 + 0.8 * angle),
            (0.33, -height - 0.45 * arch + 0.4 * angle),
            (0.52, -height - arch),
            (0.66, -height - 0.35 * arch),
            (0.77, -height + 0.070),
        ]
    )
    width = thickness * np.array([0.10, 0.74, 1.0, 0.94, 0.68, 0.12])
    both = smooth(np.concatenate([line, width[:, None]], 1), closed=False)
    return both[:, :2], both[:, 2]
