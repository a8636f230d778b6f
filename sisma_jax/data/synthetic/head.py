"""Pose and traits of one head, and where its points fall in the picture.

Head coordinates: origin between the eyes, x to the viewer's right, y down, unit = half the width of
the face seen from the front. So the cheekbones stand at x = -1 and 1, the mouth near y = 1, the
chin near y = 1.5. Everything here depends on (seed, index) only, never on the look.
"""

import math
from dataclasses import dataclass

import numpy as np

from sisma_jax.data.synthetic.curves import Points

_EDGE = math.pi / 2 - 1e-3
_ALIGNMENT = 0.85
"""Share of the features' shift under yaw and pitch that the crop, aligned at the eyes, undoes."""


class Chance:
    """Draws named distributions from one random generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def about(self, mean: float, spread: float, limit: float = 2.2) -> float:
        """A normal draw, cut at `limit` standard deviations."""
        return mean + spread * min(max(self.rng.standard_normal(), -limit), limit)

    def happens(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, weights: dict[str, float]) -> str:
        """A key of `weights`, each as often as its weight."""
        at = self.rng.random() * sum(weights.values())
        for name, weight in weights.items():
            at -= weight
            if at < 0:
                return name
        return name


@dataclass(frozen=True)
class Pose:
    """Where the head is and how it is turned.

    `x`, `y`: the eye centre in picture coordinates; `scale`: half the face's width; `yaw` > 0 turns
    the face to the viewer's right, `pitch` > 0 bows it, `roll` > 0 tilts it clockwise (radians).
    """

    x: float
    y: float
    scale: float
    yaw: float
    pitch: float
    roll: float

    def on_face(self, points: Points, out: float | np.ndarray = 0.0) -> Points:
        """Points of the frontal face, wrapped on the turned head; `out` lifts them off it."""
        x, y = points[:, 0], points[:, 1]
        angle = np.arcsin(np.minimum(np.maximum(x, -1), 1)) + self.yaw
        angle = np.minimum(np.maximum(angle, -_EDGE), _EDGE)
        curve = np.minimum(np.abs(y), 2) / 2.2
        depth = np.cos(angle) * np.sqrt(1 - curve * curve) + out
        return self.turned(np.sin(angle) + out * math.sin(self.yaw), y, depth)

    def on_both_sides(self, right: Points, out: float | np.ndarray = 0.0) -> tuple[Points, Points]:
        """`on_face` of a shape on the viewer's right, and of its mirror image."""
        x = np.concatenate([right[:, 0], -right[:, 0]])
        y = np.concatenate([right[:, 1], right[:, 1]])
        both = self.on_face(np.stack([x, y], 1), out if np.isscalar(out) else np.tile(out, 2))
        return both[: len(right)], both[len(right) :]

    def silhouette(self, points: Points) -> Points:
        """Points of the frontal outline of face and jaw: the chin leads when the head turns."""
        x, y = points[:, 0], points[:, 1]
        forward = np.minimum(np.maximum((y - 0.3) / 1.2, 0), 1)
        forward = 0.78 * forward * forward
        return self.turned(x + forward * math.sin(self.yaw), y, forward)

    def outer(self, points: Points) -> Points:
        """Points of the hair's or a hat's outline: the back of the head shows when it turns."""
        x, y = points[:, 0], points[:, 1]
        back = 1 + 0.25 * abs(math.sin(self.yaw)) * (x * self.yaw < 0)
        return self.turned(x * back, y, 0.1)

    def body(self, points: Points) -> Points:
        """Points of neck and shoulders, which do not turn with the head."""
        turned = points - (0.75 * _ALIGNMENT * math.sin(self.yaw), 0)
        return turned * self.scale + (self.x, self.y)

    def turned(self, x: np.ndarray, y: np.ndarray, depth: float | np.ndarray) -> Points:
        """Picture coordinates of points whose x is already turned, by their depth to the viewer."""
        x = x - _ALIGNMENT * math.sin(self.yaw)
        y = y * math.cos(self.pitch) + (depth - _ALIGNMENT) * math.sin(self.pitch)
        cos, sin = math.cos(self.roll) * self.scale, math.sin(self.roll) * self.scale
        points = np.empty((len(y), 2))
        points[:, 0] = cos * x - sin * y + self.x
        points[:, 1] = sin * x + cos * y + self.y
        return points
