"""Outlines of the face itself: jaw, ears, nose, mouth, eyes and brows, in head coordinates.

Every function samples its own proportions and returns outlines in picture coordinates. A `side` is
+1 for the viewer's right (the subject's left, `l_`) and -1 for the viewer's left (`r_`).
"""

import math
from dataclasses import dataclass

import numpy as np

from sisma_jax.data.synthetic.curves import Corners, Points, ellipse, mirrored, smooth
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


# From where an ear is attached (x = 0) to its edge (1), and from its top (y = 0) to its lobe (1).
_EAR = smooth(
    [(-0.25, 0.02), (0.30, -0.16), (0.80, -0.12), (1.02, 0.16), (0.92, 0.46), (0.66, 0.70),
     (0.44, 0.92), (0.12, 1.0), (-0.2, 0.86)]
)  # fmt: skip
_EAR_FOLD = smooth(
    [(0.30, 0.02), (0.66, 0.02), (0.76, 0.22), (0.62, 0.48), (0.36, 0.60)], closed=False
)
_EAR_LOBE = np.array([(0.28, 0.93)])


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
    in_front = bool(side * pose.yaw < -0.05)
    top, height = -0.10, (0.12 + build.nose_base) * size

    def place(shape: np.ndarray) -> Points:
        hidden = 0.0 if in_front else -0.5 * side * np.clip(-shape[:, 0], 0, 1)
        x = attached + shape[:, 0] * (outer - attached) + hidden
        return pose.turned(x, top + shape[:, 1] * height, 0.1)

    return Ear(
        outline=place(_EAR),
        fold=place(_EAR_FOLD),
        lobe=place(_EAR_LOBE)[0],
        facing=bool(side * outer > 1.03),
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
    outline = smooth(mirrored(half))
    return pose.on_face(outline[:, :2], outline[:, 2])


def nostrils(pose: Pose, build: Build) -> tuple[Points, Points]:
    x, y = 0.45 * build.nose_width, build.nose_base + 0.008
    hole = ellipse(x, y, 0.30 * build.nose_width, 0.032)
    hole[:, 1] -= 0.25 * (hole[:, 0] - x)  # higher towards the wings
    return pose.on_both_sides(hole, 0.10)


def nose_wings(pose: Pose, build: Build) -> tuple[Points, Points]:
    """The creases around the nostrils' outer walls."""
    wide, base = build.nose_width, build.nose_base
    line = [(0.86 * wide, base - 0.15), (1.04 * wide, base - 0.08), (0.92 * wide, base + 0.005)]
    return pose.on_both_sides(smooth(line, closed=False), 0.03)


def smile_folds(pose: Pose, build: Build) -> tuple[Points, Points]:
    """The lines from the nose's wings past the corners of the mouth."""
    wide = 0.03 * max(build.smile, 0)
    base, mouth = build.nose_base, build.mouth
    line = [(build.nose_width + 0.04, base - 0.08), (0.38 + wide, base + 0.10),
            (0.46 + 2 * wide, mouth - 0.10), (0.47 + 2 * wide, mouth + 0.06)]  # fmt: skip
    return pose.on_both_sides(smooth(line, closed=False))


@dataclass(frozen=True)
class Mouth:
    """Lips and their seam; the opening between them and the teeth, None when shut."""

    upper: Points
    lower: Points
    opening: Points | None
    seam: Points
    teeth: Points | None
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

    def bend(points: Corners) -> np.ndarray:
        """From (share of the half width, y) to head coordinates with the corners lifted."""
        x, y = np.asarray(points, np.float64).T
        lift = smile * (0.10 * x**2 - 0.03)
        return np.stack([x * half, build.mouth + y - lift], 1)

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
    curves = [crown, base, upper_edge, lower_edge]
    if gap:
        curves[2:] = upper_edge, lower_edge = upper_edge * (0.93, 1), lower_edge * (0.93, 1)
        drop = chance.between(0.45, 0.75) * gap
        curves += [upper_edge, upper_edge * (0.86, 1) + (0, drop)]
    points = np.concatenate([[(0.0, build.mouth)], *curves])
    points = pose.on_face(points, 0.07 * (1 - (points[:, 0] / half) ** 2))
    centre, crown, base, upper_edge, lower_edge, *teeth = np.split(
        points, np.cumsum([1] + [len(curve) for curve in curves[:-1]])
    )
    return Mouth(
        upper=np.concatenate([crown, upper_edge[::-1]]),
        lower=np.concatenate([lower_edge, base[::-1]]),
        opening=np.concatenate([upper_edge, lower_edge[::-1]]) if gap else None,
        seam=upper_edge,
        teeth=np.concatenate([teeth[0], teeth[1][::-1]]) if gap else None,
        centre=centre[0],
        half_width=half * pose.scale,
    )


# From the inner corner of an eye (x = -1) to the outer one (1).
_UPPER_LID = smooth(
    [(-1.06, 0.30), (-0.70, -0.46), (-0.1, -1.0), (0.52, -0.82), (1.05, 0.08)], closed=False
)
_LOWER_LID = smooth(
    [(1.05, 0.08), (0.55, 0.66), (0.0, 0.84), (-0.62, 0.62), (-1.06, 0.30)], closed=False
)
_CREASE = _UPPER_LID[(_UPPER_LID[:, 0] > -0.95) & (_UPPER_LID[:, 0] < 1.03)]
_LIDS = np.concatenate([_UPPER_LID, _LOWER_LID, _CREASE])
_LIFTED = np.arange(len(_LIDS)) >= len(_UPPER_LID) + len(_LOWER_LID)


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
    """Traits that both eyes share: size, openness, slant, gaze."""

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
        x=chance.about(0.0, 0.025) - 0.10 * math.sin(pose.yaw),
        y=chance.about(-0.004, 0.008),
        crease=chance.about(0.055, 0.014),
    )


def eye(pose: Pose, build: Build, gaze: Gaze, side: int) -> Eye:
    x = side * (build.eye_gap + _LIDS[:, 0] * gaze.half_width)
    y = _LIDS[:, 1] * gaze.height - gaze.slant * _LIDS[:, 0] - gaze.crease * _LIFTED
    lids = pose.on_face(np.stack([x, y], 1), -0.03)
    upper, lower = lids[: len(_UPPER_LID)], lids[len(_UPPER_LID) : -len(_CREASE)]

    radius = 0.102
    at_x, at_y = side * build.eye_gap + gaze.x, gaze.y - 0.012
    places = pose.on_face(np.array([(at_x, at_y), (at_x + 0.02, at_y)]), -0.03)
    (x, y), (x_right, _) = places.tolist()
    turned = min(max((x_right - x) / (0.02 * pose.scale), 0.55), 1)
    return Eye(
        opening=np.concatenate([upper, lower[1:-1]]),
        upper_lid=upper,
        lower_lid=lower,
        crease=lids[-len(_CREASE) :],
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
