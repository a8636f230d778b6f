"""Light on the plate: a single lamp, rounded forms, a relief for the face, soft shadows and shine.

The head is an ellipsoid, and neck and body are cylinders. The relief of the face is a sum of bumps
(nose, cheeks, brows, lips, chin) at positions that follow the pose; their slopes tilt the normals.
The look determines the lamp's direction and strength.
"""

import math

import numpy as np

from sisma_jax.data.synthetic.figure import CLASS_ID
from sisma_jax.data.synthetic.plate import Plate, SoftPlane, products

SKIN, U_LIP, L_LIP, HAIR, HAT, EARRING, NECKLACE, NECK, CLOTH = (
    CLASS_ID[name]
    for name in ("skin", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")
)


def light(plate: Plate) -> None:
    """Multiply the plate by shade and add shine."""
    pose, look, labels = plate.figure.pose, plate.look, plate.labels
    lx, ly, lz = look.light
    cx, cy = pose.outer(np.array([(0.0, 0.1)]))[0].tolist()
    bx, _ = pose.body(np.array([(0.0, 0.0)]))[0].tolist()
    x, y = (plate.soft_axis - cx) / pose.scale, (plate.soft_axis - cy) / pose.scale
    across = (plate.soft_axis - bx) / pose.scale

    soft = plate.soft_labels
    head = (soft >= SKIN) & (soft < HAIR)
    above = (soft == HAIR) | (soft == HAT)
    fringe = plate.softened(above, 0.05, -0.10 * lx * pose.scale, 0.10 * pose.scale)
    chin = plate.softened(head, 0.06, -0.18 * lx * pose.scale, 0.16 * pose.scale)
    hanging = np.clip(1.3 * y - 0.44, 0, 1)[:, None]  # hair behind the neck
    over = (labels == HAIR) | (labels == HAT)
    forms = [  # where, normals, share of the light that reaches them, whether they shine
        (
            (labels >= SKIN) & (labels < HAIR) | (labels == EARRING),
            _normals(np.clip(0.85 * x, -0.92, 0.92), np.clip(0.48 * y, -0.9, 0.9), *relief(plate)),
            (1 - 0.42 * fringe) * (1 - np.minimum(hollows(plate), 0.6)),
            True,
        ),
        (
            over,
            _normals(np.clip(0.66 * x, -0.92, 0.92), np.clip(0.52 * y, -0.9, 0.25)),
            1 - 0.45 * chin * hanging,
            False,
        ),
        (
            (labels == NECKLACE) | (labels == NECK),
            _normals(np.clip(1.18 * across, -0.92, 0.92), np.zeros_like(y)),
            1 - 0.45 * chin,
            True,
        ),
        (
            labels == CLOTH,
            _normals(np.clip(0.42 * across, -0.92, 0.92), np.zeros_like(y)),
            1 - 0.45 * chin,
            False,
        ),
    ]
    length = math.sqrt(lx * lx + ly * ly + (lz + 1) ** 2)
    shade, shine = np.ones_like(plate.rgb[0]), np.zeros_like(plate.rgb[0])
    for where, (nx, ny, nz), reached, shines in forms:
        facing = np.maximum(nx * lx + ny * ly + nz * lz, 0)
        lit = (look.ambient + 1.07 * (1 - look.ambient) * facing) * reached
        np.copyto(shade, plate.sharp(lit), where=where)
        if shines:
            mirror = np.maximum((nx * lx + ny * ly + nz * (lz + 1)) / length, 0)
            for _ in range(4):
                mirror *= mirror
            np.copyto(shine, plate.sharp(mirror * look.gloss), where=where)
    dark = np.maximum(1 - shade, 0)
    plate.rgb[0] *= shade + 0.10 * dark * ~over  # light scatters red in skin
    plate.rgb[1] *= shade
    plate.rgb[2] *= shade - 0.03 * dark
    plate.rgb += shine * (1 + 0.6 * ((labels == U_LIP) | (labels == L_LIP)))


def _normals(
    along_x: np.ndarray,
    along_y: np.ndarray,
    slope_x: SoftPlane | float = 0.0,
    slope_y: SoftPlane | float = 0.0,
) -> tuple[SoftPlane, SoftPlane, SoftPlane]:
    """Unit normals of a form with these profiles, tilted by slopes."""
    nx, ny = along_x[None, :], along_y[:, None]
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.06))
    nx, ny = nx - slope_x, ny - slope_y
    inverse = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
    return nx * inverse, ny * inverse, nz * inverse


def relief(plate: Plate) -> tuple[SoftPlane, SoftPlane]:
    """Slopes of the face's bumps along x and y."""
    pose, build = plate.figure.pose, plate.figure.build
    base, wide, mouth = build.nose_base, build.nose_width, build.mouth
    cheek = 0.055 + 0.035 * max(build.smile, 0)
    bumps = [  # x, y, spread x, spread y, height, out of the face
        (0, 0.04, 0.085, 0.14, 0.04, 0.05),
        (0, 0.26, 0.095, 0.14, 0.065, 0.10),
        (0, base - 0.09, 0.10, 0.10, 0.11, 0.16),
        (0.72 * wide, base - 0.05, 0.065, 0.07, 0.055, 0.05),
        (-0.72 * wide, base - 0.05, 0.065, 0.07, 0.055, 0.05),
        (0.42, -0.13, 0.20, 0.10, -0.045, 0),
        (-0.42, -0.13, 0.20, 0.10, -0.045, 0),
        (0.45, -0.36, 0.28, 0.10, 0.035, 0),
        (-0.45, -0.36, 0.28, 0.10, 0.035, 0),
        (0.58, 0.40, 0.21, 0.18, cheek, 0),
        (-0.58, 0.40, 0.21, 0.18, cheek, 0),
        (0, mouth - 0.14, 0.045, 0.07, -0.012, 0.07),
        (0, mouth, 0.30, 0.20, 0.05, 0),
        (0, mouth - 0.05, 0.22, 0.05, 0.02, 0.07),
        (0, mouth + 0.10, 0.17, 0.06, 0.035, 0.07),
        (0, mouth + 0.25, 0.16, 0.06, -0.035, 0),
        (0, build.chin - 0.16, 0.17, 0.12, 0.055, 0),
    ]
    rows = np.array(bumps)
    spreads = rows[:, 2:4] * pose.scale
    away, bell = plate.bells(pose.on_face(rows[:, :2], rows[:, 5]), spreads)
    steep = -away * bell / spreads.astype(np.float32)[..., None]
    height = (rows[:, 4:5] * pose.scale).astype(np.float32)
    return products(bell[:, 1] * height, steep[:, 0]), products(steep[:, 1] * height, bell[:, 0])


def hollows(plate: Plate) -> SoftPlane:
    """Darkness where little light reaches: eye corners, beside and below the nose, lips."""
    pose, build = plate.figure.pose, plate.figure.build
    lx = plate.look.light[0]
    mouth = build.mouth
    spots = [  # x, y, spread x, spread y, darkness, out of the face
        (-0.10 * lx, build.nose_base + 0.09, 0.17, 0.055, 0.30, 0.05),
        (0, mouth + 0.22, 0.18, 0.05, 0.16, 0.03),
        (0.17, -0.06, 0.07, 0.12, 0.22, 0),
        (-0.17, -0.06, 0.07, 0.12, 0.22, 0),
        (math.copysign(0.20, -lx), 0.30, 0.07, 0.2, 0.30 * abs(lx), 0),
        (0.19, 0.34, 0.06, 0.14, 0.10, 0),
        (-0.19, 0.34, 0.06, 0.14, 0.10, 0),
        (0.36, mouth + 0.02, 0.05, 0.06, 0.12, 0),
        (-0.36, mouth + 0.02, 0.05, 0.06, 0.12, 0),
        (0.42, 0.16, 0.16, 0.04, 0.08, 0),
        (-0.42, 0.16, 0.16, 0.04, 0.08, 0),
    ]
    rows = np.array(spots)
    places = pose.on_face(rows[:, :2], rows[:, 5])
    return plate.blobs(places, rows[:, 2:4] * pose.scale, rows[:, 4])
