"""Painting a figure in a look: colours, light, then details on top."""

import numpy as np
from jaxtyping import UInt8

from sisma_jax.data.synthetic import colouring, details, lighting
from sisma_jax.data.synthetic.appearance import Look
from sisma_jax.data.synthetic.figure import Figure
from sisma_jax.data.synthetic.plate import Plate


def render(
    figure: Figure, look: Look, size: int, labels: UInt8[np.ndarray, "m m"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB picture of `size` pixels; `labels` are the figure's class ids at twice the size."""
    plate = Plate(figure, look, size, labels)
    colouring.regions(plate)
    colouring.backdrop(plate)
    colouring.complexion(plate)
    colouring.beard(plate)
    colouring.hair(plate)
    colouring.hat(plate)
    colouring.cloth(plate)
    colouring.teeth(plate)
    lighting.light(plate)
    details.eyes(plate)
    details.ink(plate)
    details.glasses(plate)
    return plate.picture()
