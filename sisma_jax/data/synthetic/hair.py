"""Hair styles and hats: outlines in head coordinates, drawn behind and in front of the face.

A style consists of a volume around the skull, the length of the hair on either side, and a
hairline. The hair behind the head is one outline that runs over the crown from the lower end of one
side to that of the other. The hair in front of the head is the same outline closed along the
hairline, which yields fringe, temples and locks. Pairs are (viewer's left, viewer's right).
"""

from dataclasses import dataclass, replace

import numpy as np

from sisma_jax.data.synthetic.curves import Corners, Points, ellipse, mirrored, smooth
from sisma_jax.data.synthetic.head import Chance, Pose

STYLES = {
    "bald": 0.04,
    "receding": 0.05,
    "short": 0.18,
    "swept": 0.09,
    "curly": 0.10,
    "bob": 0.12,
    "long": 0.20,
    "wavy": 0.14,
    "tied": 0.08,
}
"""Share of faces with each hair style; only curly, bob, long and wavy ones may hide the ears."""

HATS = {"beanie": 0.4, "cap": 0.3, "brim": 0.3}


@dataclass(frozen=True)
class Style:
    """Everything that shapes one head of hair.

    `crown`, `sides`: volume over the skull. `fall`: how far down it reaches; `flare`: how far out
    it stands there; `in_front`: whether it falls before the shoulder. `waves`: amplitude, count and
    phase of the outline's undulation. `hairline`: control points of the face's opening from temple
    to temple. `bun`: its x, y and radius.
    """

    name: str
    crown: float
    sides: float
    fall: tuple[float, float]
    flare: float
    waves: tuple[float, float, float]
    hairline: np.ndarray
    parting: float
    covers_ears: tuple[bool, bool]
    in_front: tuple[bool, bool]
    bun: tuple[float, float, float] | None


@dataclass(frozen=True)
class Hat:
    """Filled outlines of a hat, and its trimmings with their opacities."""

    kind: str
    shapes: list[Points]
    details: list[tuple[Points, float]]


def sample_style(chance: Chance, hatted: bool) -> Style:
    weights = dict(STYLES)
    if hatted:
        weights["tied"] = weights["bald"] = 0.0
    name = chance.pick(weights)
    loose = name in ("bob", "long", "wavy")
    parting = chance.about(0.0, 0.10) if chance.happens(0.5) else chance.between(0.22, 0.5)
    parting *= 1 if chance.happens(0.5) else -1
    covers = (name == "curly" and chance.happens(0.5)) or loose
    tucked = [loose and chance.happens(0.22) for _ in range(2)]
    style = Style(
        name=name,
        crown=chance.about(0.14, 0.04),
        sides=chance.about(0.05, 0.02),
        fall=(0.12, 0.12),
        flare=0.0,
        waves=(0.007, 9.0, chance.between(0.0, 6.28)),
        hairline=_hairline(chance, name, parting),
        parting=parting,
        covers_ears=(covers and not tucked[0], covers and not tucked[1]),
        in_front=(True, True),
        bun=None,
    )
    if name == "receding":
        style = replace(style, crown=0.05, sides=0.06)
    elif name == "swept":
        style = replace(style, crown=chance.between(0.20, 0.34), sides=chance.between(0.02, 0.07))
    elif name == "curly":
        volume = chance.between(0.22, 0.50)
        bottom = chance.between(0.35, 1.1) if covers else 0.12
        style = replace(
            style,
            crown=volume,
            sides=volume * chance.between(0.7, 1.0),
            fall=(bottom, bottom),
            flare=0.05,
            waves=(0.035, 17.0, style.waves[2]),
        )
    elif name == "bob":
        bottom = chance.between(0.95, 1.55)
        style = replace(
            style,
            sides=chance.between(0.10, 0.26),
            fall=(bottom, bottom + chance.about(0.0, 0.06)),
            flare=chance.between(-0.02, 0.14),
        )
    elif name in ("long", "wavy"):
        waves = (chance.between(0.04, 0.08), chance.between(6.0, 9.0), style.waves[2])
        style = replace(
            style,
            crown=chance.between(0.12, 0.26),
            sides=chance.between(0.10, 0.24),
            fall=(2.6, 2.6),
            flare=chance.between(0.0, 0.30),
            waves=waves if name == "wavy" else (0.012, 5.0, style.waves[2]),
            in_front=(chance.happens(0.6), chance.happens(0.6)),
        )
    elif name == "tied" and chance.happens(0.7):
        style = replace(style, bun=(chance.about(0.0, 0.12), -1.66, chance.between(0.26, 0.40)))
    if hatted:
        style = replace(style, crown=0.06, sides=min(style.sides, 0.16))
    return style


def _hairline(chance: Chance, name: str, parting: float) -> np.ndarray:
    """The face's opening, from the left temple over the forehead to the right temple, (n, 2)."""
    top = chance.about(-0.92, 0.05)
    kinds = {"straight": 0.35, "peak": 0.2, "parted": 0.25, "fringe": 0.2}
    if name in ("bob", "long", "wavy"):
        kinds = {"straight": 0.15, "curtain": 0.5, "fringe": 0.35}
    elif name in ("curly", "tied", "swept"):
        kinds = {"straight": 0.7, "peak": 0.3}
    kind = "receding" if name == "receding" else chance.pick(kinds)
    if kind == "straight":
        right = [(0.0, top), (0.40, top + 0.02), (0.70, top + 0.20), (0.86, -0.42), (0.93, -0.15)]
    elif kind == "peak":
        right = [(0.0, top + 0.06), (0.28, top - 0.04), (0.58, top - 0.02), (0.80, -0.50),
                 (0.93, -0.15)]  # fmt: skip
    elif kind == "receding":
        depth = chance.between(0.10, 0.32)
        right = [(0.0, top - 0.12), (0.30, top - depth - 0.1), (0.62, top - depth), (0.88, -0.66),
                 (0.95, -0.15)]  # fmt: skip
    elif kind == "fringe":
        low = chance.between(-0.62, -0.44)
        right = [(0.0, low - 0.02), (0.28, low + 0.01), (0.56, low + 0.02), (0.80, low + 0.10),
                 (0.92, -0.10)]  # fmt: skip
    else:
        return _swept_hairline(chance, top, parting, deep=kind == "curtain")
    left = [(-x, y) for x, y in right[:0:-1]]
    return np.asarray(left + right)


def _swept_hairline(chance: Chance, top: float, parting: float, deep: bool) -> np.ndarray:
    """Hair that falls to both sides of the parting, lower on the far side of the forehead."""
    low = chance.between(-0.55, -0.30) if deep else chance.between(-0.72, -0.58)
    edge = 0.90 if deep else 0.94
    bend = chance.between(1.1, 1.7)
    x = np.concatenate(
        [np.linspace(-0.9 * edge, parting, 5), np.linspace(parting, 0.9 * edge, 5)[1:]]
    )
    away = np.abs(x - parting) / np.where(x < parting, edge + parting, edge - parting)
    y = top - 0.06 + (low - top + 0.06) * away**bend
    return np.concatenate([[(-edge, -0.05)], np.stack([x, y], 1), [(edge, -0.05)]])


def _outer(style: Style, falls: tuple[float, float]) -> np.ndarray:
    """From the left fall over the crown to the right fall, dense, in head coordinates."""
    angle = np.radians([-92, -70, -48, -24, 0, 24, 48, 70, 92])
    lift = np.cos(angle).clip(0)
    shift = 0.10 * style.parting * lift
    x = (1.0 + style.sides + 0.02 * lift) * np.sin(angle) - shift
    y = -0.30 - (1.10 + style.crown) * np.cos(angle)
    arc = np.stack([x, y], 1)
    sides = []
    for side, fall in ((-1, falls[0]), (1, falls[1])):
        heights = np.array([0.2, 0.5, 0.82, 0.97, 1.0]) * (fall + 0.2) - 0.2
        cut = fall < style.fall[side > 0]  # a lock that ends early stays within the rest
        flare = 0.4 * style.flare - 0.04 if cut else style.flare
        widths = 1.0 + style.sides + flare * np.array([0.1, 0.45, 1.0, 0.9, 0.5])
        widths[-1] -= 0.10
        if fall < 0.3:  # cropped hair ends at the sideburn
            widths = np.array([1.01, 1.0, 0.99, 0.985, 0.98]) + 0.4 * style.sides
        sides.append(np.stack([side * widths, heights], 1))
    line = smooth(np.concatenate([sides[0][::-1], arc, sides[1]]), closed=False)
    amount, count, phase = style.waves
    if amount > 0.02:
        line = smooth(line[::3], closed=False)
    if amount:
        x, y = line[:, 0], line[:, 1]
        around = np.arctan2(x, 0.2 - y) + 0.35 * np.maximum(y, 0) * np.sign(x)
        wave = np.sin(count * around + phase) + 0.6 * np.sin(1.73 * count * around + 2 * phase)
        line = line * (1 + 0.8 * amount * wave)[:, None]
    return line


def back_of_hair(pose: Pose, style: Style) -> list[Points]:
    """Outlines that lie behind neck and face."""
    if style.name == "bald":
        return []
    shapes = [pose.outer(_outer(style, style.fall))]
    if style.bun is not None:
        x, y, radius = style.bun
        shapes.append(pose.outer(ellipse(x, y, radius, radius * 0.9)))
    return shapes


def front_of_hair(pose: Pose, style: Style) -> list[Points]:
    """Outlines that lie over face and shoulders, down to the hairline."""
    if style.name == "bald":
        return []
    falls, inner = [], []
    for k, side in enumerate((-1, 1)):
        if style.covers_ears[k]:
            fall = style.fall[k] if style.in_front[k] else min(style.fall[k], 1.35)
            edge = [(0.945, 0.30), (0.955, 0.75 * min(fall, 1.2)), (0.95, min(fall, 1.3))]
            edge += [(0.92, 0.5 * (fall + 1.3)), (0.98, fall)] if fall > 1.5 else []
        else:
            fall = 0.14
            edge = [(0.975, 0.18)]
        falls.append(fall)
        inner.append(np.array([(side * x, y) for x, y in edge]))
    hairline = smooth(style.hairline, closed=False)
    upper = pose.on_face(hairline, 0.02)
    left, right = (pose.on_face(smooth(edge, False) if len(edge) > 1 else edge) for edge in inner)
    outline = pose.outer(_outer(style, tuple(falls)))
    return [np.concatenate([outline, right[::-1], upper[::-1], left])]


def sample_hat(chance: Chance, pose: Pose) -> Hat:
    kind = chance.pick(HATS)
    edge = chance.about(-0.64, 0.05)

    def outline(half: Corners) -> Points:
        return pose.outer(smooth(mirrored(half)))

    if kind == "beanie":
        height = chance.between(-1.85, -1.58)
        dome = [(0, height), (0.55, 0.93 * height), (0.98, -1.25), (1.12, -0.85),
                (1.10, edge + 0.12), (0.6, edge + 0.02), (0, edge)]  # fmt: skip
        cuff = [(0, edge - 0.33), (0.6, edge - 0.30), (1.15, edge - 0.18), (1.14, edge + 0.16),
                (0.6, edge + 0.06), (0, edge + 0.03)]  # fmt: skip
        dome, cuff = outline(dome), outline(cuff)
        return Hat(kind, [dome, cuff], [(cuff, 0.35)])
    if kind == "cap":
        dome = [(0, -1.62), (0.5, -1.55), (0.92, -1.30), (1.09, -0.85), (1.08, edge + 0.18),
                (0.6, edge + 0.04), (0, edge)]  # fmt: skip
        drop = chance.between(0.24, 0.36)
        visor = [(0, edge - 0.20, 0), (0.55, edge - 0.17, 0), (0.93, edge - 0.04, 0),
                 (0.80, edge + 0.6 * drop, 0.35), (0.42, edge + drop, 0.5),
                 (0, edge + 1.08 * drop, 0.55)]  # fmt: skip
        visor = smooth(mirrored(visor))
        visor = pose.on_face(visor[:, :2], visor[:, 2])
        return Hat(kind, [outline(dome), visor], [(visor, 0.5)])
    reach = chance.between(1.45, 1.80)
    crown = [(0, -1.62), (0.35, -1.68), (0.80, -1.55), (0.93, -1.0), (0.98, edge - 0.05), (0, edge)]
    band = [(0, edge - 0.38), (0.955, edge - 0.42), (1.0, edge - 0.03), (0, edge + 0.02)]
    brim = ellipse(0.0, edge - 0.02, reach, 0.20)
    brim[:, 1] -= 0.10 * np.abs(brim[:, 0]) ** 2 / reach
    band, brim = pose.outer(mirrored(band)), pose.outer(brim)
    return Hat(kind, [outline(crown), brim], [(band, 0.9), (brim, 0.12)])
