"""The unfinished picture and the operations that paint on it.

Pixels are planes (3, m, m) of float32 in [0, 1] at twice the picture's resolution, m = 2 size, for
sharp edges. Light and other smooth fields are computed at the picture's own resolution, mostly as
sums of Gaussian blobs.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from sisma_jax.data.synthetic.appearance import Colour, Look
from sisma_jax.data.synthetic.curves import Canvas, Points
from sisma_jax.data.synthetic.figure import Figure, majority

Plane = Float[np.ndarray, "m m"]
"""A field at twice the picture's resolution."""

SoftPlane = Float[np.ndarray, "size size"]
"""A field at the picture's resolution."""


class Plate:
    """Planes `rgb`, the label samples they belong to, and the figure and look they show.

    `soft_labels` are the labels at the picture's resolution; `axis` (m,) and `soft_axis` (size,)
    hold the picture coordinate of every column, and of every row.
    """

    def __init__(self, figure: Figure, look: Look, size: int, labels: UInt8[np.ndarray, "m m"]):
        self.figure, self.look, self.size, self.labels = figure, look, size, labels
        self.soft_labels = majority(labels)
        self.axis = _pixel_centres(2 * size)
        self.soft_axis = _pixel_centres(size)
        self.rgb = np.zeros((3, 2 * size, 2 * size), np.float32)

    def zeros(self) -> SoftPlane:
        return np.zeros((self.size, self.size), np.float32)

    def sharp(self, field: SoftPlane) -> Plane:
        """`field` at twice the picture's resolution."""
        return field.repeat(2, axis=1).repeat(2, axis=0)

    def bells(
        self, points: Points, spreads: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2 size"], Float[np.ndarray, "n 2 size"]]:
        """Gaussians around `points` along x and y: distances in standard deviations, and values."""
        away = self.soft_axis - points.astype(np.float32)[..., None]
        away /= spreads.astype(np.float32)[..., None]
        return away, np.exp(np.maximum(-0.5 * away * away, -30))  # subnormal numbers are slow

    def blobs(
        self, points: Points, spreads: Float[np.ndarray, "n 2"], heights: Float[np.ndarray, "n"]
    ) -> SoftPlane:
        """A sum of Gaussians; `spreads` are their standard deviations along x and y."""
        _, values = self.bells(points, spreads)
        return products(values[:, 1] * heights.astype(np.float32)[:, None], values[:, 0])

    def blend(self, opacity: Plane, colour: Colour | Sequence[float]) -> None:
        """Mix in `colour` by `opacity`."""
        for plane, value in zip(self.rgb, colour, strict=True):
            plane += opacity * (np.float32(value) - plane)

    def drawing(self, shapes: Sequence[tuple[Points, float]]) -> Plane:
        """Antialiased opacity of polygons with their opacities, later ones replacing earlier."""
        canvas = Canvas(self.size)
        for polygon, opacity in shapes:
            canvas.fill(polygon, round(255 * opacity))
        return canvas.coverage()

    def softened(
        self, mask: Bool[np.ndarray, "size size"], radius: float, x: float, y: float
    ) -> SoftPlane:
        """`mask` blurred by `radius` and shifted by (x, y), all in picture coordinates."""
        size = self.size
        dx, dy = round(x * size / 2), round(y * size / 2)
        target = tuple(slice(max(d, 0), size + min(d, 0)) for d in (dy, dx))
        source = tuple(slice(max(-d, 0), size - max(d, 0)) for d in (dy, dx))
        moved = np.zeros((size, size), np.uint8)
        moved[target] = mask[source]
        image = Image.fromarray(moved * np.uint8(255))
        if size > 64:  # a shadow has no detail finer than that
            image = image.resize((64, 64), Image.Resampling.BOX)
        image = image.filter(ImageFilter.GaussianBlur(radius * image.size[0] / 2))
        if size > 64:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(image, np.float32) / 255

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """Adjust the colour temperature, average 2 x 2 pixels and round to uint8."""
        rows = self.rgb[:, 0::2] + self.rgb[:, 1::2]
        planes = rows[:, :, 0::2] + rows[:, :, 1::2]
        warmth = self.look.warmth
        planes *= (np.array([1 + warmth, 1, 1 - warmth], np.float32) / 4)[:, None, None]
        pixels = (np.clip(planes, 0, 1) * 255 + 0.5).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def products(
    along_y: Float[np.ndarray, "n size"], along_x: Float[np.ndarray, "n size"]
) -> SoftPlane:
    """The sum of n outer products; einsum, because threads of a BLAS would change last bits."""
    return np.einsum("ny,nx->yx", along_y, along_x)


def _pixel_centres(count: int) -> Float[np.ndarray, "count"]:
    return ((np.arange(count) + 0.5) * (2 / count) - 1).astype(np.float32)
