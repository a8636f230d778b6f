"""Details drawn after light: eyes, lashes and creases, glasses."""

import math

import numpy as np

from sisma_jax.data.synthetic.curves import Points, ribbon
from sisma_jax.data.synthetic.figure import CLASS_ID
from sisma_jax.data.synthetic.plate import Plate


def eyes(plate: Plate) -> None:
    """Iris, pupil and glint, and the upper lid's shadow on the white."""
    look, scale = plate.look, plate.figure.pose.scale
    pixel = 1 / plate.size
    for side, name in ((1, "l_eye"), (-1, "r_eye")):
        eye = plate.figure.eyes[side]
        x, y, rx, ry = eye.iris
        rows, columns = (
            slice(*np.searchsorted(plate.axis, (at - reach * scale, at + reach * scale)))
            for at, reach in ((y, 0.2), (x, 0.34))
        )
        shown = plate.labels[rows, columns] == CLASS_ID[name]
        if not shown.any():
            continue
        px, py = plate.axis[columns][None, :], plate.axis[rows][:, None]
        patch = plate.rgb[:, rows, columns]
        lid = float(eye.upper_lid[:, 1].min())
        patch *= np.where(shown, np.clip(0.66 + (py - lid) / (0.22 * scale), 0.66, 1), 1)
        away = np.sqrt(((px - x) / rx) ** 2 + ((py - y) / ry) ** 2)
        iris = np.clip((1 - away) * ry / pixel + 0.5, 0, 1) * shown
        pupil = np.clip((0.45 - away) * ry / pixel + 0.5, 0, 1)
        tone = np.clip(1.15 - 0.75 * np.clip(away, 0, 1) ** 3 + 0.25 * (py - y) / ry, 0.3, 1.5)
        tone *= 1 - 0.92 * pupil
        for plane, value in zip(patch, look.iris.tolist(), strict=True):
            plane += iris * (value * tone - plane)
        gx, gy = x + math.copysign(0.32 * rx, look.light[0]), y - 0.38 * ry
        away = np.sqrt((px - gx) ** 2 + (py - gy) ** 2)
        glint = np.clip((0.30 * ry - away) / pixel + 0.5, 0, 1) * shown
        patch += 0.9 * glint * (0.95 - patch)


def ink(plate: Plate) -> None:
    """Lashes, lid creases, nostrils, the seam of the lips, the folds of ears and cheeks."""
    look, figure = plate.look, plate.figure
    scale = figure.pose.scale
    marks: list[tuple[Points, float]] = []
    marks += [(ribbon(ear.fold, 0.045 * scale), 0.28) for ear in figure.ears]
    marks += [(nostril, 0.62) for nostril in figure.nostrils]
    for lines, width, opacity in (
        (figure.folds, 0.06 * scale, look.lines),
        (figure.wings, 0.035 * scale, 0.22),
        ([figure.mouth.seam], 0.05 * scale, 0.62),
    ):
        for line in lines:
            swell = np.sin(np.linspace(0.2, math.pi - 0.2, len(line)))
            marks.append((ribbon(line, width * swell), opacity))
    for eye in figure.eyes.values():
        marks.append((ribbon(eye.crease, 0.026 * scale), 0.34))
        marks.append((ribbon(eye.lower_lid, 0.022 * scale), 0.22 + 0.3 * (look.liner - 0.45)))
        lash = np.linspace(0.5, 1, len(eye.upper_lid))
        marks.append((ribbon(eye.upper_lid, 0.072 * scale * lash), look.liner))
    face = (plate.labels >= CLASS_ID["skin"]) & (plate.labels < CLASS_ID["hair"])
    opacity = plate.drawing(marks) * face
    plate.rgb *= 1 - opacity * np.array([0.80, 0.88, 0.88], np.float32)[:, None, None]


def glasses(plate: Plate) -> None:
    """Tint and glare of the lenses, then the frame."""
    worn, look, scale = plate.figure.glasses, plate.look, plate.figure.pose.scale
    if worn is None:
        return
    labels = plate.labels
    seen = (labels >= CLASS_ID["eye_g"]) & (labels <= CLASS_ID["r_brow"])
    lens = plate.drawing([(shape, 1.0) for shape in worn.lenses]) * seen
    if worn.dark:
        plate.blend(lens * np.float32(0.86), look.lens * 0.5)
    else:
        plate.blend(lens * np.float32(look.lens_opacity), look.lens)
    shift = (math.copysign(0.13 * scale, look.light[0]), -0.10 * scale)
    centres = np.array([shape.mean(0) for shape in worn.lenses]) + shift
    plate.rgb += (
        plate.sharp(plate.blobs(centres, np.full((2, 2), (0.05, 0.03)), np.full(2, 0.22))) * lens
    )
    holes = [(shape, 0.0) for shape in worn.lenses]
    frame = plate.drawing([(shape, 1.0) for shape in worn.shapes] + holes)
    plate.blend(frame * (labels == CLASS_ID["eye_g"]), look.frame)
